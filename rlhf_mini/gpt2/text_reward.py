"""A reward head on a language model, fitted to human preferences between sentences.

Decisions:
- A sentence stands between two end tokens, as each review did in pretraining; the
  score is read at the last one, which has seen all of it.
- A batch is one slate: every sentence is scored once and compared with all others of
  the batch, with the share of raters who prefer it as a soft label.
- All weights learn, not the head alone, from few labels. Against over-fitting: dropout;
  some tokens are hidden, so that no single word decides; the mean of the scores at
  all tokens is compared too, so that the sentence is judged all along; and a share of
  the loss is that of predicting the next token of the same sentences.
- Batches hold sentences of like length, so that few tokens are pads.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..checks import check_between, check_positive
from ..human_pairs import preference
from ..losses import all_pairs_loss
from ..policies import join
from .models import TokenScorer


@dataclass(frozen=True)
class HeadSettings:
    """How a reward head is fitted."""

    lr: float = 1e-3
    batch: int = 32  # sentences compared with one another
    steps: int = 500
    warmup: float = 0.06  # share of the steps
    dropout: float = 0.1
    hidden: float = 0.1  # share of the tokens that a pad replaces, in training
    weight_decay: float = 0.01
    along_weight: float = 1.0  # of the comparison of scores averaged over the tokens
    lm_weight: float = 0.3  # of the next-token loss on the same sentences
    max_grad_norm: float = 1.0
    bfloat16: bool = False  # matrix products in 16 bits; the weights stay in 32

    def __post_init__(self):
        check_positive(lr=self.lr, steps=self.steps, max_grad_norm=self.max_grad_norm)
        check_between(0, 1, warmup=self.warmup, dropout=self.dropout)
        check_between(0, 1, hidden=self.hidden)
        check_between(0, math.inf, lm_weight=self.lm_weight)
        check_between(0, math.inf, along_weight=self.along_weight)
        if self.batch < 2:
            raise ValueError(f"batch: want ≥ 2 sentences, found {self.batch}")


def encode(tokenizer, texts: Sequence[str], longest: int = 128) -> list[list[int]]:
    """The tokens of each text and the end token after it; texts are cut at `longest`.

    Raises:
      ValueError: longest < 2.
    """
    if longest < 2:
        raise ValueError(f"longest: want ≥ 2 tokens, found {longest}")
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [row[: longest - 1] + [tokenizer.eos_token_id] for row in rows]


def score_rows(scorer: TokenScorer, rows: Sequence[list[int]], start: int) -> Tensor:
    """Scores of rows of tokens, [B], with gradient.

    Args:
      start: the token that stands before every text, and is its whole prompt.
    """
    return scorer.last(*_columns(scorer, rows, start))


def _columns(scorer, rows, start) -> tuple[Tensor, Tensor, Tensor]:
    """(prompts [B, 1], tokens [B, T], mask [B, T]) of rows of unequal length."""
    width = max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), scorer.pad)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = True
    return torch.full((len(rows), 1), start), tokens, mask


def score_and_read(
    scorer: TokenScorer, rows: Sequence[list[int]], start: int, hidden: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """One forward pass for all that is compared, and for the next-token loss.

    The next-token head is the transposed embedding, as in pretraining.

    Args:
      hidden: share of the tokens that the network sees as pads; the end token and
        what is to be predicted stay.

    Returns:
      Scores at the last token, [B]; the mean of the scores at all tokens, [B]; the
      mean negative log-probability of the rows' tokens, nats.
    """
    prompts, tokens, mask = _columns(scorer, rows, start)
    seen = tokens
    if hidden:
        gone = (torch.rand(tokens.shape) < hidden) & (tokens != start)
        seen = tokens.masked_fill(gone, scorer.pad)
    batch = join(prompts, seen, mask, scorer.pad)
    body = scorer.model.base_model
    states = body(**batch, use_cache=False).last_hidden_state
    config = scorer.model.config
    scores = scorer.model.score(states)[:, 1:, 0].float()  # the prompt is one token
    scores = (scores - config.reward_shift) / config.reward_scale
    length = mask.sum(-1)
    at_end = scores.gather(-1, length[:, None] - 1)[:, 0]
    along = (scores * mask).sum(-1) / length
    logits = states[:, :-1][mask] @ body.get_input_embeddings().weight.T
    return at_end, along, F.cross_entropy(logits.float(), tokens[mask])


@torch.no_grad()
def score_texts(
    scorer: TokenScorer, rows: Sequence[list[int]], start: int, batch: int = 128
) -> Tensor:
    """Scores of any number of rows, [N], without gradient and without dropout."""
    learning = scorer.model.training
    scorer.model.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    scores = torch.empty(len(rows))
    for at in range(0, len(order), batch):
        picked = order[at : at + batch]
        scores[picked] = score_rows(scorer, [rows[i] for i in picked], start)
    scorer.model.train(learning)
    return scores


def slates(
    lengths: Sequence[int], batch: int, generator: torch.Generator
) -> list[Tensor]:
    """One pass over the sentences in random batches of like length.

    Sentences are shuffled, then sorted within pools of sixteen batches; the odd ones
    at the end of the pass are left out.

    Raises:
      ValueError: fewer sentences than a batch.
    """
    if len(lengths) < batch:
        found = f"{len(lengths)} sentences, batch {batch}"
        raise ValueError(f"want at least one batch, found {found}")
    sizes = torch.as_tensor(lengths)
    order = torch.randperm(len(sizes), generator=generator)
    found = []
    for pool in order.split(16 * batch):
        ordered = pool[sizes[pool].argsort(stable=True)]
        found += [b for b in ordered.split(batch) if len(b) == batch]
    shuffled = torch.randperm(len(found), generator=generator).tolist()
    return [found[i] for i in shuffled]


def fit_reward_head(
    scorer: TokenScorer,
    rows: Sequence[list[int]],
    shares: Tensor,
    start: int,
    settings: HeadSettings,
    generator: torch.Generator,
    on_step: Callable[[int, float], None] | None = None,
    *,
    stop: int | None = None,
    progress: bool = True,
) -> list[float]:
    """Fit all weights of the scorer to human preferences; returns the
    preference loss per step, in nats per pair.

    Dropout and hiding draw from torch's global generator, which is seeded from
    `generator` here and put back afterwards.

    Args:
      rows: tokens of N training sentences (`encode`).
      shares: their rating shares, [N, R] (`human_pairs.rating_shares`).
      start: the token before every text.
      on_step: called after each step with (steps done, loss).
      stop: end after this many steps, of a schedule that is made for settings.steps.

    Raises:
      ValueError: lengths differ, too few sentences, or the loss is not finite.

    Source: Dai and Le (2015), arXiv 1511.01432: the next-token loss beside the other,
    words left out, a label at every token.
    """
    if len(rows) != len(shares):
        found = f"{len(rows)} rows, {len(shares)} rows of shares"
        raise ValueError(f"rows, shares: want one of each a sentence, found {found}")
    s = settings
    decayed = [p for p in scorer.parameters() if p.ndim > 1]
    others = [p for p in scorer.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": s.weight_decay},
         {"params": others, "weight_decay": 0.0}],
        lr=s.lr, betas=(0.9, 0.99),
    )  # fmt: skip
    lengths, losses, queue = [len(row) for row in rows], [], []
    shares = shares.float()
    set_dropout(scorer.model, s.dropout)
    scorer.model.train()
    steps = s.steps if stop is None else min(stop, s.steps)
    bar = tqdm(total=steps, desc="reward head", disable=None if progress else True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        for step in range(steps):
            queue = queue or slates(lengths, s.batch, generator)
            picked = queue.pop()
            rate = schedule(step, s.steps, s.warmup)
            for group in optimizer.param_groups:
                group["lr"] = s.lr * rate
            batch = [rows[i] for i in picked.tolist()]
            given = shares[picked]
            with torch.autocast("cpu", torch.bfloat16, enabled=s.bfloat16):
                scores, along, read = score_and_read(scorer, batch, start, s.hidden)
            q = preference(given, given)
            preferred = all_pairs_loss(scores, q)
            loss = preferred + s.along_weight * all_pairs_loss(along, q)
            loss = loss + s.lm_weight * read
            if not torch.isfinite(loss):
                raise ValueError(f"loss: found {loss.item()} at step {step}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(scorer.parameters(), s.max_grad_norm)
            optimizer.step()
            losses.append(preferred.item())
            bar.update()
            if on_step:
                on_step(step + 1, losses[-1])
    bar.close()
    scorer.model.eval()
    return losses


def schedule(step: int, steps: int, warmup: float) -> float:
    """The learning rate's factor: up in a line over the warm-up, then down to 0.

    >>> [schedule(s, 10, 0.2) for s in (0, 1, 5)]
    [0.5, 0.9, 0.5]
    """
    return min(1.0, (step + 1) / max(1.0, warmup * steps)) * (1 - step / steps)


def set_dropout(model: nn.Module, p: float) -> None:
    """Every dropout of the network gets this probability."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
