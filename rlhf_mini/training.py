"""One update of each method, each readable in one screen; the loop is the caller's.

The same functions train a table and a GPT-2: a policy needs `.sample` and `.logp`
(policies.py), a critic is called with (prompts, tokens, mask), a scorer maps a
`Rollout` to [B] scores. Each step returns a dict of plain floats under the field's
usual names.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .advantages import gae, leave_one_out
from .checks import check_between, check_positive
from .kl import AdaptiveKL, approx_kl, shape_rewards
from .logprobs import sequence_sum
from .losses import (
    best_of_k_loss,
    clip_fraction,
    dpo_loss,
    explained_variance,
    ppo_clip_loss,
    reinforce_loss,
    value_clip_loss,
)
from .masking import masked_mean, masked_whiten
from .rollouts import Clock, Rollout, collect


@dataclass(frozen=True)
class PPOSettings:
    """What one PPO iteration does with its rollout."""

    gamma: float = 1.0
    lam: float = 0.95
    clip_eps: float = 0.2
    value_clip: float = 0.2  # reward units
    value_weight: float = 0.1
    epochs: int = 4
    minibatches: int = 4
    max_grad_norm: float = 1.0
    whiten: bool = True  # advantages to mean 0, variance 1: the step no longer
    # shrinks with them near the optimum

    def __post_init__(self):
        check_between(0, 1, gamma=self.gamma, lam=self.lam)
        check_positive(
            clip_eps=self.clip_eps, value_clip=self.value_clip, epochs=self.epochs,
            minibatches=self.minibatches, max_grad_norm=self.max_grad_norm,
        )  # fmt: skip


def ppo_step(
    policy,
    critic,
    reference,
    score: Callable[[Rollout], Tensor],
    prompts: Tensor,
    optimizer: torch.optim.Optimizer,
    controller: AdaptiveKL,
    settings: PPOSettings,
    generator: torch.Generator,
) -> dict[str, float]:
    """One PPO iteration: sample, score, estimate advantages, a few epochs of updates.

    The KL penalty is k1 per token inside the reward; returns are taken before the
    advantages are whitened; the controller sees the KL per answer, not per token.
    """
    clock = Clock()
    batch = collect(
        policy, prompts, generator,
        reference=reference, critic=critic, score=score, clock=clock,
    )  # fmt: skip
    rewards = shape_rewards(
        batch.scores, batch.logp, batch.ref_logp, batch.mask, controller.beta
    )
    advantages, returns = gae(
        rewards, batch.values, batch.mask, settings.gamma, settings.lam
    )
    if settings.whiten:
        advantages = masked_whiten(advantages, batch.mask)
    losses, clip = [], settings.clip_eps
    with clock("update"):
        for _ in range(settings.epochs):
            order = torch.randperm(len(batch), generator=generator)
            for rows in order.chunk(settings.minibatches):
                b, a, target = batch[rows], advantages[rows], returns[rows]
                logp = policy.logp(b.prompts, b.tokens, b.mask)
                values = critic(b.prompts, b.tokens, b.mask)
                actor = ppo_clip_loss(logp, b.logp, a, b.mask, clip)
                value = value_clip_loss(
                    values, b.values, target, b.mask, settings.value_clip
                )
                losses.append(_update_metrics(logp, b, actor, value, settings))
                _descend(actor + settings.value_weight * value, optimizer, settings)
    row = _rollout_metrics(batch, controller.beta)
    row |= {k: sum(d[k] for d in losses) / len(losses) for k in losses[0]}
    # the first forward after sampling: anything but 0 is a bug
    row["first_ratio_error"] = losses[0]["ratio_error"]
    row["explained_variance"] = explained_variance(
        batch.values, returns, batch.mask
    ).item()
    controller.update(row["kl_to_ref"], len(batch))
    return row | clock.seconds


def rloo_step(
    policy,
    reference,
    score: Callable[[Rollout], Tensor],
    prompts: Tensor,
    optimizer: torch.optim.Optimizer,
    beta: float,
    group: int,
    settings: PPOSettings,
    generator: torch.Generator,
) -> dict[str, float]:
    """One RLOO update (Ahmadian et al. 2024): REINFORCE on whole answers.

    A_i = R_i − mean of the other answers to the same prompt, R = r − β·Σ_t k1.
    """
    clock = Clock()
    asked = prompts.repeat_interleave(group, dim=0)
    batch = collect(
        policy, asked, generator, reference=reference, score=score, clock=clock
    )
    penalised = batch.scores - beta * batch.kl_to_ref()
    advantages = leave_one_out(penalised.view(-1, group)).view(-1)
    with clock("update"):
        logp = policy.logp(batch.prompts, batch.tokens, batch.mask)
        loss = reinforce_loss(sequence_sum(logp, batch.mask), advantages)
        _descend(loss, optimizer, settings)
    row = _rollout_metrics(batch, beta) | {"policy_loss": loss.item()}
    row["first_ratio_error"] = _ratio_error(logp, batch)
    return row | clock.seconds


def dpo_step(
    policy,
    prompts: Tensor,
    chosen: tuple[Tensor, Tensor, Tensor],
    rejected: tuple[Tensor, Tensor, Tensor],
    optimizer: torch.optim.Optimizer,
    beta: float,
    settings: PPOSettings,
) -> dict[str, float]:
    """One DPO update (Rafailov et al. 2023, eq. 7) on a batch of pairs.

    Args:
      chosen, rejected: (tokens [B, T], mask [B, T], ref_logp [B]) of the two answers;
        `ref_logp` is the *sum* over the answer's tokens.
    """
    rows = len(prompts)
    # one forward for both: the answers stand below one another
    tokens, mask = (torch.cat([chosen[i], rejected[i]]) for i in range(2))
    logp = sequence_sum(policy.logp(torch.cat([prompts] * 2), tokens, mask), mask)
    won, lost = logp[:rows], logp[rows:]
    loss = dpo_loss(won, lost, chosen[2], rejected[2], beta).mean()
    margin = beta * ((won - chosen[2]) - (lost - rejected[2])).detach()
    row = {
        "dpo_loss": loss.item(),
        "margin": margin.mean().item(),
        "accuracy": (margin > 0).double().mean().item(),
        "chosen_logp": won.mean().item(),
        "rejected_logp": lost.mean().item(),
    }
    _descend(loss, optimizer, settings)
    return row


def reward_model_step(
    scores: Tensor,
    choice: Tensor,
    optimizer: torch.optim.Optimizer,
    settings: PPOSettings,
) -> dict[str, float]:
    """One update of a reward model from scores [B, K] of K answers, choice [B].

    For K = 2 the loss is Bradley–Terry's −log σ(r_w − r_l).
    """
    loss = best_of_k_loss(scores, choice).mean()
    right = (scores.argmax(-1) == choice).double().mean().item()
    row = {"loss": loss.item(), "accuracy": right}
    _descend(loss, optimizer, settings)
    return row


def linear_decay(optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
    """Set every learning rate to its first value times 1 − step/steps."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * (1 - step / steps)


def _descend(loss: Tensor, optimizer, settings: PPOSettings) -> None:
    if not torch.isfinite(loss):
        raise ValueError(f"loss: found {loss.item()}; the update was not made")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for group in optimizer.param_groups:  # actor and critic are clipped apart
        norm = nn.utils.clip_grad_norm_(group["params"], settings.max_grad_norm)
        if not torch.isfinite(norm):
            raise ValueError(f"gradient: norm {norm.item()}; the update was not made")
    optimizer.step()


def _ratio_error(logp: Tensor, batch: Rollout) -> float:
    ratio = (logp.detach() - batch.logp).exp()
    return (ratio - 1).abs()[batch.mask].max().item()


def _rollout_metrics(batch: Rollout, beta: float) -> dict[str, float]:
    kl = batch.kl_to_ref()
    return {
        "score": batch.scores.mean().item(),
        "score_std": batch.scores.std().item(),
        "kl_to_ref": kl.mean().item(),
        "objective": (batch.scores - beta * kl).mean().item(),
        "entropy": masked_mean(batch.entropy, batch.mask).item(),
        "length": batch.mask.sum(-1).double().mean().item(),
        "beta": beta,
    }


def _update_metrics(logp, batch, policy_loss, value_loss, settings) -> dict[str, float]:
    old = batch.logp
    return {
        "policy_loss": policy_loss.item(),
        "value_loss": value_loss.item(),
        "approx_kl": approx_kl(logp.detach(), old, batch.mask).item(),
        "clipfrac": clip_fraction(logp, old, batch.mask, settings.clip_eps).item(),
        "ratio_error": _ratio_error(logp, batch),
    }
