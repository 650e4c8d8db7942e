"""The real language model, cut down until every answer can be listed.

One prompt, the V′ tokens the reference likes best there, answers of T tokens: V′^T
answers. Their rewards, π*, log Z and J are then exact, on the same weights and
through the same training steps as the full run.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import exact
from ..policies import CausalLMPolicy
from ..rollouts import Rollout
from .models import load_policy
from .world import World


@dataclass(frozen=True)
class Enumerable:
    """All answers to one prompt, with their exact law under the reference."""

    prompt: Tensor  # [1, P]
    allowed: Tensor  # [V′] token ids
    answers: Tensor  # [V′^T, T] token ids
    ref_logp: Tensor  # [V′^T] nats, float64
    rewards: Tensor  # [V′^T] float64
    policy: CausalLMPolicy  # trainable, restricted to `allowed`
    reference: CausalLMPolicy
    beta: float

    def logp(self, policy: CausalLMPolicy) -> Tensor:
        """Exact log-law of a policy over all answers, [V′^T] float64."""
        prompts = self.prompt.expand(len(self.answers), -1)
        mask = torch.ones_like(self.answers, dtype=torch.bool)
        with torch.no_grad():
            logp = policy.logp(prompts, self.answers, mask).double().sum(-1)
        # float32 logits: the listed law sums to 1 only to about 1e-6
        return logp - logp.logsumexp(-1)

    def gap(self, policy: CausalLMPolicy) -> float:
        """β·KL(π‖π*) = β log Z − J(π), exact, in reward units."""
        return exact.gap(
            self.logp(policy), self.ref_logp, self.rewards, self.beta
        ).item()

    def attainable(self) -> float:
        """What the optimum gains over the reference: β log Z − J(π_ref)."""
        return self.gap(self.reference)

    def score(self, rollout: Rollout) -> Tensor:
        """Rewards of sampled answers, looked up, [B] float32."""
        slot = self.policy.slot[rollout.tokens]
        index = torch.zeros_like(slot[:, 0])
        for column in slot.unbind(1):
            index = index * len(self.allowed) + column
        return self.rewards[index].float()


def make_enumerable(
    world: World, reward_model, prompt: Tensor, *, beta: float, tokens=20, length=2
) -> Enumerable:
    """List all answers of `length` tokens out of the `tokens` likeliest at the prompt.

    Rewards are the reward model's scores of prompt + answer, standardised under the
    reference's law, so that β means the same for every prompt.
    """
    with torch.no_grad():
        logits = world.reference.model(prompt).logits[0, -1]
    logits[[world.tokenizer.eos_token_id, world.tokenizer.pad_token_id]] = -torch.inf
    allowed = logits.topk(tokens).indices.sort().values.cpu()
    make = lambda: load_policy(  # noqa: E731
        world.settings.model, world.tokenizer, max_new_tokens=length, allowed=allowed,
        device=world.device,
    )  # fmt: skip
    policy, reference = make(), make().requires_grad_(False)
    answers = policy.allowed[exact.enumerate_sequences(tokens, length)]
    mask = torch.ones_like(answers, dtype=torch.bool)
    prompts = prompt.expand(len(answers), -1)
    with torch.no_grad():
        rewards = reward_model.last(prompts, answers, mask).double()
    listed = Enumerable(
        prompt, allowed, answers, rewards, rewards, policy, reference, beta
    )
    ref_logp = listed.logp(reference)
    mean = (ref_logp.exp() * rewards).sum()
    spread = (ref_logp.exp() * (rewards - mean) ** 2).sum().sqrt()
    return Enumerable(
        prompt, allowed, answers, ref_logp, (rewards - mean) / spread, policy,
        reference, beta,
    )  # fmt: skip
