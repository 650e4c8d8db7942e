"""How good the answers are: gold, proxy, two unseen judges, KL, and diversity."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..exact import best_of_n_kl_bound, best_of_n_weights
from ..rollouts import Clock, Rollout, collect, concatenate
from .models import TokenScorer
from .reviews import Judges, decode


@dataclass(frozen=True)
class Scoreboard:
    """Everybody who has an opinion of an answer."""

    judges: Judges
    reward_model: TokenScorer | None
    tokenizer: object

    def __call__(self, rollout: Rollout) -> dict[str, Tensor]:
        """Per-answer columns, each [B] float64."""
        texts = decode(rollout, self.tokenizer)
        columns = {
            "gold": self.judges.gold.score(texts),
            "positive_reviews": self.judges.reviews.score(texts) > 0,
            "positive_ratings": self.judges.ratings.score(texts) > 0,
        }
        if self.reward_model is not None:
            columns["reward_model"] = self.reward_model.score(rollout).cpu()
        return {name: x.double() for name, x in columns.items()}


class Watched:
    """A scorer that also notes what others think of the answers it scores.

    Training sees only what the scorer returns; what was noticed is for the log.
    """

    def __init__(self, score, board: Scoreboard):
        self.score, self.board = score, board
        self.parts, self.clock = [], Clock()

    def __call__(self, rollout: Rollout) -> Tensor:
        with self.clock("judges"):
            self.parts.append((rollout, self.board(rollout)))
        return self.score(rollout)

    def take(self) -> dict[str, float]:
        """Mean opinions of all answers since the last call: a batch comes in parts.

        `seconds_judges` is the time that watching took; it is in `seconds_score` too.
        """
        rollouts, boards = zip(*self.parts, strict=True)
        row = {k: torch.cat([b[k] for b in boards]).mean().item() for k in boards[0]}
        row["distinct_2"] = distinct(concatenate(list(rollouts)), 2)
        row |= self.clock.seconds
        self.parts, self.clock = [], Clock()
        return row


def distinct(rollout: Rollout, n: int) -> float:
    """Distinct n-grams of the answers over all n-grams. Depends on how many there are.

    Compare only between samples of the same size.
    """
    grams = []
    for tokens, mask in zip(rollout.tokens, rollout.mask, strict=True):
        row = tokens[mask].tolist()
        grams += [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
    return len(set(grams)) / max(len(grams), 1)


def evaluate(
    policy, reference, prompts: Tensor, board: Scoreboard, generator: torch.Generator
) -> tuple[dict, Rollout]:
    """One answer to each prompt, and what everybody thinks of it.

    Returns:
      (row, rollout). Each opinion has its mean under its name and the half width of
      its 95 % interval under name + "_ci"; `kl_to_ref` is in nats per answer,
      `ref_perplexity` per token under the reference.
    """
    rollout = collect(policy, prompts, generator, reference=reference)
    columns = board(rollout) | {"kl_to_ref": rollout.kl_to_ref().double()}
    row = {}
    for name, x in columns.items():
        row[name] = x.mean().item()
        row[name + "_ci"] = 1.96 * (x.std() / len(x) ** 0.5).item()
    row["entropy"] = rollout.entropy[rollout.mask].mean().item()
    row["distinct_1"], row["distinct_2"] = distinct(rollout, 1), distinct(rollout, 2)
    row["ref_perplexity"] = rollout.ref_logp[rollout.mask].mean().neg().exp().item()
    row["length"] = rollout.mask.sum(-1).double().mean().item()
    row["answers"] = len(rollout)
    return row, rollout


def best_of_n_curve(
    columns: dict[str, Tensor], group: int, sizes: list[int]
) -> list[dict]:
    """Best-of-n by the reward model, for every n, from one set of samples.

    Every n ≤ group uses all samples of a prompt: the chance that each would be the
    best of n drawn without replacement (an unbiased estimate, less noisy than
    drawing n). `kl_bound` is log n − (n − 1)/n, exact only for a score without atoms.

    Args:
      columns: what everybody thinks of `group` answers to each of N prompts, prompt
        by prompt (`Scoreboard`), each [N·group].
    """
    proxy = columns["reward_model"].view(-1, group)
    rows = []
    for n in sizes:
        weights = torch.stack([best_of_n_weights(r, n) for r in proxy])
        row = {"n": n, "kl_bound": best_of_n_kl_bound(n)}
        for name, x in columns.items():
            per_prompt = (weights * x.view(-1, group)).sum(-1)
            row[name] = per_prompt.mean().item()
            spread = per_prompt.std() / len(per_prompt) ** 0.5
            row[name + "_ci"] = 1.96 * spread.item()
        rows.append(row)
    return rows


def best_of_n(
    policy, prompts: Tensor, board: Scoreboard, n: int, generator: torch.Generator
) -> list[dict]:
    """The best-of-n curve for 1, 2, 4, … up to n, from n answers to each prompt."""
    asked = prompts.repeat_interleave(n, dim=0)
    rollout = collect(policy, asked, generator, batch_size=512)
    parts = [board(rollout[rows]) for rows in torch.arange(len(rollout)).split(512)]
    columns = {k: torch.cat([part[k] for part in parts]) for k in parts[0]}
    sizes = [2**i for i in range(n.bit_length()) if 2**i <= n]
    return best_of_n_curve(columns, n, sizes)


def samples(before: Rollout, after: Rollout, board: Scoreboard, n: int) -> list[dict]:
    """The first n answers to the same prompts before and after, with gold scores.

    Raises:
      ValueError: the prompts are not the same.
    """
    before, after = before[:n], after[:n]
    if not torch.equal(before.prompts, after.prompts):
        raise ValueError("before, after: want answers to the same prompts")
    tokenizer, gold = board.tokenizer, board.judges.gold
    columns = {
        "prompt": tokenizer.batch_decode(before.prompts, skip_special_tokens=True),
        "before": decode(before, tokenizer, answers_only=True),
        "after": decode(after, tokenizer, answers_only=True),
        "before_gold": gold.score(decode(before, tokenizer)).tolist(),
        "after_gold": gold.score(decode(after, tokenizer)).tolist(),
    }
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]
