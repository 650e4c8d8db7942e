"""One update of each on-policy method, one screen each; the loop is the caller's.

The same functions train a table and a GPT-2: a policy needs `.sample` and `.logp`
(policies.py), a critic is called with (prompts, tokens, mask), a scorer maps a
`Rollout` to [B] scores. What learns from data that are there already is in
offline_training.py.

All steps take the same: a policy (changed once per update through `optimizer`), a
frozen `reference`, `score`, the `prompts` as `.sample` takes them, β in reward per nat,
`PPOSettings` and a generator. They return a dict of plain floats under the field's
usual names: means per answer of `score`, `kl_to_ref` (k1, nats) and `objective` over
the fresh samples; `approx_kl`, `clipfrac` over the updates. `group` is the number of
answers to each prompt. They raise ValueError where their losses do, and, before
anything is changed, if the loss or a gradient is not finite.

Many seeds train as copies in one table (`TokenWorld.policy(copies)`). They stay
independent if nothing is taken over all rows: max_grad_norm = math.inf, no whitening,
one minibatch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .advantages import gae, group_normalized, leave_one_out
from .checks import check_between, check_positive
from .kl import AdaptiveKL, approx_kl, shape_rewards
from .logprobs import sequence_sum
from .losses import (
    clip_fraction,
    explained_variance,
    grpo_loss,
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
    max_grad_norm: float = 1.0  # one norm over all rows; math.inf clips nothing
    whiten: bool = True  # advantages to mean 0, variance 1: the step no longer
    # shrinks with them near the optimum

    def __post_init__(self):
        check_between(0, 1, gamma=self.gamma, lam=self.lam)
        check_positive(
            clip_eps=self.clip_eps, value_clip=self.value_clip, epochs=self.epochs,
            minibatches=self.minibatches,
        )  # fmt: skip
        if self.max_grad_norm != math.inf:
            check_positive(max_grad_norm=self.max_grad_norm)


def reinforce_step(
    policy,
    reference,
    score: Callable[[Rollout], Tensor],
    prompts: Tensor,
    optimizer: torch.optim.Optimizer,
    beta: float,
    settings: PPOSettings,
    generator: torch.Generator,
    baseline: float | Tensor = 0.0,
) -> dict[str, float]:
    """One REINFORCE update (Williams 1992) on whole answers.

    A = R − b,  R = r − β·Σ_t k1
    b changes no mean, only the noise, and the noise stays at π* unless b is R there.

    Args:
      baseline: b in reward units, a number or [B]; it must not depend on the answers.
    """
    clock = Clock()
    batch = collect(
        policy, prompts, generator, reference=reference, score=score, clock=clock
    )
    advantages = batch.scores - beta * batch.kl_to_ref() - baseline
    with clock("update"):
        logp = policy.logp(batch.prompts, batch.tokens, batch.mask)
        loss = reinforce_loss(sequence_sum(logp, batch.mask), advantages)
        descend(loss, optimizer, settings)
    row = _rollout_metrics(batch, beta) | {"policy_loss": loss.item()}
    row["first_ratio_error"] = _ratio_error(logp, batch)
    return row | clock.seconds


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
    """One PPO iteration (Schulman et al. 2017): sample, score, a few epochs of updates.

    r_t = −β·k1_t + 1[t = last]·r,  A by GAE,  L = L_clip + value_weight·L_value
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
                losses.append(_update_metrics(logp, b, actor, settings))
                losses[-1]["value_loss"] = value.item()
                descend(actor + settings.value_weight * value, optimizer, settings)
    row = _rollout_metrics(batch, controller.beta) | _over_updates(losses)
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
        descend(loss, optimizer, settings)
    row = _rollout_metrics(batch, beta) | {"policy_loss": loss.item()}
    row["first_ratio_error"] = _ratio_error(logp, batch)
    return row | clock.seconds


def grpo_step(
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
    """One GRPO iteration as published (Shao et al. 2024): the KL is k3 in the loss.

    A_i = (r_i − mean r)/std r in the group, the same for every token; `grpo_loss`.
    Three parts move its fixed point away from π*: the std, 1/|answer|, and k3 as a
    loss, whose gradient is that of KL(π_ref‖π) at the prefixes seen.
    """
    clock = Clock()
    asked = prompts.repeat_interleave(group, dim=0)
    batch = collect(
        policy, asked, generator, reference=reference, score=score, clock=clock
    )
    advantages = group_normalized(batch.scores.view(-1, group)).view(-1)

    def loss(logp, b, a):
        return grpo_loss(
            logp, b.logp, b.ref_logp, a, b.mask, beta, settings.clip_eps
        )  # fmt: skip

    with clock("update"):
        row = _epochs(policy, batch, advantages, loss, optimizer, settings, generator)
    return _rollout_metrics(batch, beta) | row | clock.seconds


def grpo_k1_step(
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
    """GRPO's advantage with the KL where PPO has it: k1 in the reward.

    A_i = (R_i − mean R)/std R in the group,  R = r − β·Σ_t k1; `ppo_clip_loss`.
    At π* all R of a prompt are equal, so π* is a fixed point; but the std makes the
    noise on the way there as large as far from it, and only the rate can end it.
    """
    clock = Clock()
    asked = prompts.repeat_interleave(group, dim=0)
    batch = collect(
        policy, asked, generator, reference=reference, score=score, clock=clock
    )
    penalised = batch.scores - beta * batch.kl_to_ref()
    advantages = group_normalized(penalised.view(-1, group)).view(-1)

    def loss(logp, b, a):
        return ppo_clip_loss(logp, b.logp, a, b.mask, settings.clip_eps)

    with clock("update"):
        row = _epochs(policy, batch, advantages, loss, optimizer, settings, generator)
    return _rollout_metrics(batch, beta) | row | clock.seconds


def _epochs(
    policy, batch, advantages, loss, optimizer, settings, generator
) -> dict[str, float]:
    """A few epochs of updates with one advantage [B] for all tokens of an answer."""
    advantages = advantages[:, None].expand_as(batch.logp)  # [B, T]
    losses = []
    for _ in range(settings.epochs):
        order = torch.randperm(len(batch), generator=generator)
        for rows in order.chunk(settings.minibatches):
            b, a = batch[rows], advantages[rows]
            logp = policy.logp(b.prompts, b.tokens, b.mask)
            actor = loss(logp, b, a)
            losses.append(_update_metrics(logp, b, actor, settings))
            descend(actor, optimizer, settings)
    return _over_updates(losses)


def linear_decay(optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
    """Set every learning rate to its first value times 1 − step/steps.

    Args:
      step: updates made so far, 0 ≤ step < steps; the rate of the last one is not 0.
    """
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * (1 - step / steps)


def descend(
    loss: Tensor, optimizer: torch.optim.Optimizer, settings: PPOSettings
) -> None:
    """One step down the loss, each parameter group clipped to `max_grad_norm`.

    Raises:
      ValueError: the loss or a gradient is not finite; no parameter was changed.
    """
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


def _update_metrics(logp, batch, policy_loss, settings) -> dict[str, float]:
    old = batch.logp
    return {
        "policy_loss": policy_loss.item(),
        "approx_kl": approx_kl(logp.detach(), old, batch.mask).item(),
        "clipfrac": clip_fraction(logp, old, batch.mask, settings.clip_eps).item(),
        "ratio_error": _ratio_error(logp, batch),
    }


def _over_updates(losses: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each number over the updates of one iteration."""
    row = {k: sum(d[k] for d in losses) / len(losses) for k in losses[0]}
    # the first forward after sampling: anything but 0 is a bug
    return row | {"first_ratio_error": losses[0]["ratio_error"]}
