"""One update from data that are there already: answers, pairs, choices.

The counterpart of training.py, where every update samples first. The same functions
train a table and a GPT-2; the loop over the data is the caller's. Each step changes
the parameters of `optimizer` once and returns a dict of plain floats. It raises
ValueError where its loss does (shapes, an empty mask), and, before anything is
changed, if the loss or a gradient is not finite.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .logprobs import sequence_sum
from .losses import best_of_k_loss, dpo_loss, reinforce_loss
from .training import PPOSettings, descend


def sft_step(
    policy,
    prompts: Tensor,
    tokens: Tensor,
    mask: Tensor,
    optimizer: torch.optim.Optimizer,
    settings: PPOSettings,
) -> dict[str, float]:
    """One supervised update: minus the mean log-probability of the answers' tokens.

    L = −Σᵢₜ log π(yᵢₜ | xᵢ, yᵢ,<t) / number of tokens
    REINFORCE's loss with an advantage of 1 for every token, but the answers are given.
    On draws from a law q it descends KL(q‖π), the *forward* KL: on accepted draws of
    π* it is rejection-sampling fine-tuning, on best-of-n draws it copies best-of-n.

    Args:
      prompts: what the policy's `.logp` takes, B of them.
      tokens, mask: the answers, [B, T].

    Returns:
      `sft_loss` before the update, nats per token.
    """
    logp = policy.logp(prompts, tokens, mask)
    loss = reinforce_loss(logp, torch.ones_like(logp), mask)
    row = {"sft_loss": loss.item()}
    descend(loss, optimizer, settings)
    return row


def dpo_step(
    policy,
    prompts: Tensor,
    chosen: tuple[Tensor, Tensor, Tensor],
    rejected: tuple[Tensor, Tensor, Tensor],
    optimizer: torch.optim.Optimizer,
    beta: float,
    settings: PPOSettings,
    loss_of_pairs: Callable[..., Tensor] = dpo_loss,
) -> dict[str, float]:
    """One DPO update on a batch of pairs.

    L = −mean log σ(β·h),  h = log π(y_w)/π_ref(y_w) − log π(y_l)/π_ref(y_l)
    The margin may rise while `chosen_logp` falls: look at both (notebook 08).

    Args:
      prompts: what the policy's `.logp` takes, B of them.
      chosen, rejected: (tokens [B, T], mask [B, T], ref_logp [B]) of the two answers;
        `ref_logp` is the *sum* over the answer's tokens.
      beta: β, reward per nat.
      loss_of_pairs: called as dpo_loss is, the weight last: `ipo_loss` takes `beta` as
        its τ, and partial(cdpo_loss, flip=0.1) is conservative DPO.

    Returns:
      Means over the pairs, before the update: `dpo_loss`, `margin` β·h in reward units,
      `accuracy`, `chosen_logp` and `rejected_logp` in nats per answer.

    Source: Rafailov et al. (2023), arXiv 2305.18290, eq. 7.
    """
    rows = len(prompts)
    # one forward for both: the answers stand below one another
    tokens, mask = (torch.cat([chosen[i], rejected[i]]) for i in range(2))
    logp = sequence_sum(policy.logp(torch.cat([prompts] * 2), tokens, mask), mask)
    won, lost = logp[:rows], logp[rows:]
    loss = loss_of_pairs(won, lost, chosen[2], rejected[2], beta).mean()
    margin = beta * ((won - chosen[2]) - (lost - rejected[2])).detach()
    row = {
        "dpo_loss": loss.item(),
        "margin": margin.mean().item(),
        "accuracy": (margin > 0).double().mean().item(),
        "chosen_logp": won.mean().item(),
        "rejected_logp": lost.mean().item(),
    }
    descend(loss, optimizer, settings)
    return row


def reward_model_step(
    scores: Tensor,
    choice: Tensor,
    optimizer: torch.optim.Optimizer,
    settings: PPOSettings,
) -> dict[str, float]:
    """One update of a reward model from choices among K answers.

    L = −mean log softmax(scores)[choice];  K = 2: Bradley–Terry's −log σ(r_w − r_l)
    Only differences within a row count: the scores may drift by a constant.

    Args:
      scores: of the K answers to each prompt, with gradient, [B, K].
      choice: the index of the preferred one, [B].

    Returns:
      `loss` in nats and `accuracy`, before the update.

    Source: Ziegler et al. (2019), arXiv 1909.08593, eq. 1.
    """
    loss = best_of_k_loss(scores, choice).mean()
    right = (scores.argmax(-1) == choice).double().mean().item()
    row = {"loss": loss.item(), "accuracy": right}
    descend(loss, optimizer, settings)
    return row
