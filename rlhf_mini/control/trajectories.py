"""From acting to learning: episodes of one length, and the PPO update on them.

The losses are the library's own: `gae`, `ppo_clip_loss`, `value_clip_loss`, the same
that train a table and a language model. An episode is an answer, a decision is a token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf_mini.advantages import gae
from rlhf_mini.checks import check_ndim, check_same_shape
from rlhf_mini.losses import (
    clip_fraction,
    explained_variance,
    ppo_clip_loss,
    value_clip_loss,
)
from rlhf_mini.masking import masked_whiten
from rlhf_mini.training import PPOSettings

from .networks import GaussianPolicy, StackedMLP


@dataclass(frozen=True)
class Trajectories:
    """Episodes of S learners, N at once, T decisions each."""

    observations: Tensor  # [S, N, T, O] before each decision, time left in the last
    reached: Tensor  # [S, N, T, F] what a reward model may see of the state after it
    actions: Tensor  # [S, N, T, A] before clipping
    logp: Tensor  # [S, N, T] nats, of the policy that acted
    values: Tensor  # [S, N, T] reward units, before each decision
    hidden: dict[str, Tensor]  # [S, N, T, ...] what only the judge may see


@torch.no_grad()
def act(
    env,
    policy: GaussianPolicy,
    critic: StackedMLP | None,
    generator: torch.Generator,
    greedy: bool = False,
) -> Trajectories:
    """One episode of every environment.

    Args:
      env: batched and of fixed length: `.reset(generator)` and `.step(actions)` for
        [S, N] environments (`cartpole.CartPoles`, `hopper.Hoppers`); `.observe()` is
        [S, N, O], `.reached()` [S, N, F], `.hidden()` a dict of [S, N, ...].
      critic: called on the observations; None leaves the values at 0.
      greedy: take the mean action instead of a draw.
    """
    env.reset(generator)
    rows: list[tuple] = []
    for _ in range(env.length):
        o = env.observe()
        a, logp = policy.sample(o, None if greedy else generator)
        v = torch.zeros_like(logp) if critic is None else critic(o)[..., 0]
        env.step(a)
        rows.append((o, env.reached(), a, logp, v, env.hidden()))
    o, reached, a, logp, v, hidden = zip(*rows, strict=True)
    stacked = [torch.stack(x, dim=2) for x in (o, reached, a, logp, v)]
    names = hidden[0]
    return Trajectories(
        *stacked, {k: torch.stack([h[k] for h in hidden], dim=2) for k in names}
    )


def ppo_update(
    policy: GaussianPolicy,
    critic: StackedMLP,
    batch: Trajectories,
    rewards: Tensor,
    optimizer: torch.optim.Optimizer,
    settings: PPOSettings,
    generator: torch.Generator,
) -> dict[str, float]:
    """A few epochs of PPO on one batch of episodes, for all S copies at once.

    An episode's end is terminal: nothing comes after it. So the critic has to know the
    time that is left, which stands in the observation.

    Args:
      rewards: of each decision, [S, N, T], from whatever is being optimised.
    """
    check_ndim(3, rewards=rewards)
    check_same_shape(rewards=rewards, logp=batch.logp)
    copies, _, length = rewards.shape
    advantages, returns = gae(
        rewards.reshape(-1, length), batch.values.reshape(-1, length), None,
        settings.gamma, settings.lam,
    )  # fmt: skip
    if settings.whiten:  # each copy by itself
        parts = advantages.view(copies, -1)
        advantages = torch.stack([masked_whiten(a, None) for a in parts])
    flat = {
        "o": batch.observations.flatten(1, 2), "a": batch.actions.flatten(1, 2),
        "logp": batch.logp.flatten(1), "v": batch.values.flatten(1),
        "adv": advantages.reshape(copies, -1), "ret": returns.reshape(copies, -1),
    }  # fmt: skip
    clipped, steps = 0.0, 0
    for _ in range(settings.epochs):
        order = torch.randperm(flat["adv"].shape[1], generator=generator)
        for rows in order.chunk(settings.minibatches):
            b = {k: x[:, rows] for k, x in flat.items()}
            logp = policy.logp(b["o"], b["a"])
            actor = ppo_clip_loss(logp, b["logp"], b["adv"], clip_eps=settings.clip_eps)
            value = value_clip_loss(
                critic(b["o"])[..., 0], b["v"], b["ret"], clip_eps=settings.value_clip
            )
            loss = copies * (actor + settings.value_weight * value)  # a sum over copies
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for group in optimizer.param_groups:
                clip_each_copy(group["params"], settings.max_grad_norm)
            optimizer.step()
            with torch.no_grad():
                clipped += clip_fraction(
                    logp, b["logp"], clip_eps=settings.clip_eps
                ).item()
            steps += 1
    return {
        "clipfrac": clipped / steps,
        "explained_variance": explained_variance(flat["v"], flat["ret"]).item(),
    }


def clip_each_copy(parameters: list[nn.Parameter], limit: float) -> Tensor:
    """Scale the gradient of each copy to at most `limit`; return the norms, [S].

    Raises:
      ValueError: a norm is not finite; no update was made.
    """
    norms = sum(p.grad.flatten(1).square().sum(1) for p in parameters).sqrt()
    if not torch.isfinite(norms).all():
        bad = int((~torch.isfinite(norms)).nonzero()[0])
        raise ValueError(f"gradient: norm {norms[bad].item()} in copy {bad}")
    factor = (limit / (norms + 1e-6)).clamp(max=1.0)
    for p in parameters:
        p.grad.mul_(factor.view(-1, *[1] * (p.grad.ndim - 1)))
    return norms
