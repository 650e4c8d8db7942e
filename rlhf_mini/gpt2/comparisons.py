"""Preferences between sampled answers, and the reward model that learns from them."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..annotators import BradleyTerryAnnotator
from ..offline_training import reward_model_step
from ..rollouts import collect, concatenate
from ..training import PPOSettings, linear_decay
from .models import TokenScorer


@dataclass(frozen=True)
class Comparisons:
    """N prompts with K sampled answers each, and which one the annotator chose."""

    prompts: Tensor  # [N, P]
    tokens: Tensor  # [N, K, T]
    mask: Tensor  # [N, K, T] bool
    ref_logp: Tensor  # [N, K] nats, summed over the answer, of the policy that sampled
    gold: Tensor  # [N, K] rating points; the annotator's taste, never trained on
    choice: Tensor  # [N] index of the chosen answer

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows) -> "Comparisons":
        return Comparisons(*(getattr(self, f.name)[rows] for f in fields(self)))

    def pairs(self) -> tuple[Tensor, tuple, tuple]:
        """(prompts, chosen, rejected) for `dpo_step`: the chosen answer against each
        other one, N·(K − 1) rows less the pairs of two equal answers."""
        n, k = self.choice.shape[0], self.tokens.shape[1]
        lost = torch.arange(k, device=self.choice.device).expand(n, k)
        lost = lost[lost != self.choice[:, None]].view(n, k - 1)
        row = torch.arange(n, device=lost.device).repeat_interleave(k - 1)
        won, lost = self.choice[row], lost.flatten()
        differ = (self.tokens[row, won] != self.tokens[row, lost]).any(-1)
        row, won, lost = row[differ], won[differ], lost[differ]
        pick = lambda i: tuple(  # noqa: E731
            x[row, i] for x in (self.tokens, self.mask, self.ref_logp)
        )
        return self.prompts[row], pick(won), pick(lost)

    def write_jsonl(self, path: Path, tokenizer) -> None:
        """`prompt, chosen, rejected` lines, as TRL and `datasets` read them."""
        prompts, chosen, rejected = self.pairs()
        pad = tokenizer.pad_token_id
        decode = lambda x: tokenizer.batch_decode(  # noqa: E731
            x, skip_special_tokens=True
        )
        columns = [decode(prompts)]
        columns += [decode(a[0].where(a[1], pad)) for a in (chosen, rejected)]
        with Path(path).open("w", encoding="utf-8") as file:
            for row in zip(*columns, strict=True):
                line = dict(zip(("prompt", "chosen", "rejected"), row, strict=True))
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def compare(
    policy,
    prompts: Tensor,
    gold,
    annotator: BradleyTerryAnnotator,
    k: int,
    generator: torch.Generator,
    *,
    progress: bool = True,
) -> Comparisons:
    """Sample k answers to each prompt and let the annotator choose one.

    Prompts whose answers are all the same are dropped: they would add a constant.

    Raises:
      ValueError: k < 2.
    """
    if k < 2:
        raise ValueError(f"k: want ≥ 2 answers to compare, found {k}")
    parts = []
    chunks = prompts.repeat_interleave(k, dim=0).split(k * max(512 // k, 1))
    for chunk in tqdm(
        chunks, desc="sampling answers", disable=None if progress else True
    ):
        parts.append(collect(policy, chunk, generator, score=gold, batch_size=512))
    r = concatenate(parts)
    n = len(prompts)
    tokens = r.tokens.where(r.mask, policy.pad).view(n, k, -1)
    gold_scores = r.scores.view(n, k)
    found = Comparisons(
        prompts=prompts, tokens=tokens, mask=r.mask.view(n, k, -1),
        ref_logp=r.logp.sum(-1).view(n, k), gold=gold_scores,
        choice=annotator.choose(gold_scores, generator),
    )  # fmt: skip
    differ = (tokens != tokens[:, :1]).any(-1).any(-1)
    return found[differ]


def score_all(scorer: TokenScorer, c: Comparisons) -> Tensor:
    """Scores of every answer, [N, K], differentiable."""
    n, k, t = c.tokens.shape
    prompts = c.prompts.repeat_interleave(k, dim=0)
    flat = scorer.last(prompts, c.tokens.reshape(n * k, t), c.mask.reshape(n * k, t))
    return flat.view(n, k)


def fit_reward_model(
    scorer: TokenScorer,
    data: Comparisons,
    generator: torch.Generator,
    *,
    lr: float,
    batch: int = 32,
    epochs: int = 1,
    progress: bool = True,
) -> list[dict]:
    """Train on comparisons; one epoch, learning rate falling to 0. Returns the log."""
    optimizer = torch.optim.AdamW(
        scorer.parameters(), lr=lr, weight_decay=0.01, fused=True
    )
    settings = PPOSettings()
    per_epoch = -(-len(data) // batch)
    bar = tqdm(
        total=epochs * per_epoch,
        desc="reward model",
        disable=None if progress else True,
    )
    log = []
    for _ in range(epochs):
        order = torch.randperm(len(data), generator=generator)
        for rows in order.split(batch):
            linear_decay(optimizer, len(log), epochs * per_epoch)
            b = data[rows]
            log_odds = score_all(scorer, b) * scorer.scale
            row = reward_model_step(log_odds, b.choice, optimizer, settings)
            log.append(row)
            bar.update()
            if len(log) % 10 == 0:
                recent = log[-50:]
                right = sum(x["accuracy"] for x in recent) / len(recent)
                bar.set_postfix(accuracy=f"{right:.3f}")
    bar.close()
    return log


@torch.no_grad()
def predict(scorer: TokenScorer, data: Comparisons, batch: int = 128) -> Tensor:
    """P(each answer is chosen), [N, K]: softmax of the log-odds, not of the scores."""
    rows = torch.arange(len(data)).split(batch)
    scores = torch.cat([score_all(scorer, data[i]) for i in rows])
    return (scores * scorer.scale).softmax(-1)


def accuracy(predicted: Tensor, data: Comparisons) -> tuple[float, float]:
    """Share of choices that the prediction names, and its standard error."""
    right = (predicted.argmax(-1) == data.choice).double()
    return right.mean().item(), (right.std() / len(right) ** 0.5).item()
