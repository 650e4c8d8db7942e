"""The real language model, cut down until every answer can be listed.

One prompt, the V′ tokens the reference likes best there, answers of T tokens: V′^T
answers. Their rewards, π*, log Z and J are then exact, on the same weights and
through the same training steps as the full run. A batch holds few different
prefixes, and the network reads each of them once: that alone makes it quick.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from .. import exact
from ..annotators import BradleyTerryAnnotator
from ..checks import check_positive
from ..logprobs import entropy, token_logp
from ..offline_training import dpo_step
from ..policies import CausalLMPolicy, draw
from ..rollouts import Rollout
from ..training import PPOSettings, linear_decay, ppo_step, rloo_step
from .models import TokenScorer, load_policy
from .pipeline import FixedKL, adam, passes
from .world import World


def read_once(
    network: Callable[..., Tensor], prompts: Tensor, tokens: Tensor, mask: Tensor
) -> Tensor:
    """network(prompts, tokens, mask), [B, T, …], run on one row of each kind only.

    Rows are of one kind if they differ in the last token at most. So nothing that
    `network` returns may depend on that token: true of logits and of values, which
    stand one slot before theirs. The gradient is that of all B rows.
    """
    prefixes = torch.cat([prompts, tokens[:, :-1]], dim=1)
    kinds, kind = prefixes.unique(dim=0, return_inverse=True)
    row = torch.arange(len(kind), device=kind.device)
    row = kind.new_empty(len(kinds)).scatter_(0, kind, row)
    return network(prompts[row], tokens[row], mask[row])[kind]


class ListedPolicy(CausalLMPolicy):
    """The same law, sampled and scored with one row for all that share a prefix.

    Answers have full length: `allowed` must not hold the end token.
    """

    def logits(self, prompts: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        return read_once(super().logits, prompts, tokens, mask)

    @torch.no_grad()
    def sample(self, prompts: Tensor, generator: torch.Generator) -> Rollout:
        # what is not drawn yet may be anything: no law looks ahead
        tokens = self.allowed[:1].repeat(len(prompts), self.max_new_tokens)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        for t in range(self.max_new_tokens):
            law = self.logits(prompts, tokens[:, : t + 1], mask[:, : t + 1])
            tokens[:, t] = self.allowed[draw(law[:, t], generator)]
        return Rollout(
            prompts, tokens, mask, token_logp(law, self.slot[tokens]), entropy(law)
        )


@dataclass(frozen=True)
class Enumerable:
    """All answers to one prompt, with their exact law under the reference."""

    prompt: Tensor  # [1, P]
    allowed: Tensor  # [V′] token ids
    answers: Tensor  # [V′^T, T] token ids
    ref_logp: Tensor  # [V′^T] nats, float64
    rewards: Tensor  # [V′^T] float64
    policy: ListedPolicy  # trainable, restricted to `allowed`
    reference: ListedPolicy
    reward_model: TokenScorer  # a copy whose scores are the rewards: PPO's first critic
    beta: float

    def logp(self, policy: CausalLMPolicy) -> Tensor:
        """Exact log-law of a policy over all answers, [V′^T] float64."""
        prompts = self.prompt.expand(len(self.answers), -1)
        mask = torch.ones_like(self.answers)
        with torch.no_grad():
            logits = policy.logits(prompts, self.answers, mask).double()
        logp = token_logp(logits, policy.slot[self.answers]).sum(-1)
        # float32 logits: the listed law sums to 1 only to about 1e-6
        return logp - logp.logsumexp(-1)

    def gap(self, policy: CausalLMPolicy) -> float:
        """β·KL(π‖π*) = β log Z − J(π), exact, in reward units."""
        return exact.gap(
            self.logp(policy), self.ref_logp, self.rewards, self.beta
        ).item()

    def share(self) -> float:
        """The trained policy's gap as a share of what can be gained."""
        return self.gap(self.policy) / self.attainable()

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
    world: World,
    reward_model: TokenScorer,
    prompt: Tensor,
    *,
    beta: float,
    tokens: int = 20,
    length: int = 2,
) -> Enumerable:
    """List all answers of `length` tokens out of the `tokens` likeliest at the prompt.

    Rewards are the reward model's scores of prompt + answer, standardised under the
    reference's law, so that β means the same for every prompt.

    Raises:
      ValueError: not one prompt, fewer than two tokens, or β ≤ 0.
    """
    if prompt.ndim != 2 or len(prompt) != 1:
        raise ValueError(f"prompt: want shape [1, P], found {list(prompt.shape)}")
    if tokens < 2 or length < 1:
        found = f"{tokens} tokens, length {length}"
        raise ValueError(f"want ≥ 2 tokens and length ≥ 1, found {found}")
    check_positive(beta=beta)
    with torch.no_grad():
        logits = world.reference.model(prompt).logits[0, -1]
    logits[[world.tokenizer.eos_token_id, world.tokenizer.pad_token_id]] = -torch.inf
    allowed = logits.topk(tokens).indices.sort().values.cpu()
    make = lambda: load_policy(  # noqa: E731
        world.settings.model, world.tokenizer, max_new_tokens=length, allowed=allowed,
        device=world.device, kind=ListedPolicy,
    )  # fmt: skip
    policy, reference = make(), make().requires_grad_(False)
    answers = policy.allowed[exact.enumerate_sequences(tokens, length)]
    mask = torch.ones_like(answers, dtype=torch.bool)
    prompts = prompt.expand(len(answers), -1)
    scorer = copy.deepcopy(reward_model)
    with torch.no_grad():
        rewards = scorer.last(prompts, answers, mask).double()
    listed = Enumerable(
        prompt, allowed, answers, rewards, rewards, policy, reference, scorer, beta
    )
    ref_logp = listed.logp(reference)
    mean = (ref_logp.exp() * rewards).sum()
    spread = (ref_logp.exp() * (rewards - mean) ** 2).sum().sqrt()
    scorer.standardise(mean.item(), spread.item())
    return replace(listed, ref_logp=ref_logp, rewards=(rewards - mean) / spread)


# Each climb trains `small.policy` and yields `small.share()` every so many updates:
# the exact gap costs about as much as an update.


def climb_rloo(
    small: Enumerable,
    steps: int,
    batch: int,
    lr: float,
    generator: torch.Generator,
    every: int = 1,
) -> Iterator[float]:
    """RLOO with the whole batch as one group: there is one prompt."""
    optimizer = adam([small.policy], [lr])
    for i in range(steps):
        linear_decay(optimizer, i, steps)
        rloo_step(
            small.policy, small.reference, small.score, small.prompt, optimizer,
            small.beta, batch, PPOSettings(), generator,
        )  # fmt: skip
        if (i + 1) % every == 0:
            yield small.share()


def climb_ppo(
    small: Enumerable,
    steps: int,
    batch: int,
    lr: float,
    generator: torch.Generator,
    settings: PPOSettings,
    every: int = 1,
) -> Iterator[float]:
    """PPO with a critic that starts as a copy of the reward model."""
    critic = copy.deepcopy(small.reward_model).requires_grad_(True)
    values = partial(read_once, critic)
    optimizer = adam([small.policy, critic], [lr, lr])
    prompts = small.prompt.expand(batch, -1)
    for i in range(steps):
        linear_decay(optimizer, i, steps)
        ppo_step(
            small.policy, values, small.reference, small.score, prompts, optimizer,
            FixedKL(small.beta), settings, generator,
        )  # fmt: skip
        if (i + 1) % every == 0:
            yield small.share()


def climb_dpo(
    small: Enumerable,
    pairs: int,
    steps: int,
    batch: int,
    lr: float,
    generator: torch.Generator,
    every: int = 1,
) -> Iterator[float]:
    """DPO on labelled pairs of the reference's answers; the noise is that of σ(Δr)."""
    law = small.ref_logp.exp()
    drawn = torch.multinomial(law, 2 * pairs, True, generator=generator).view(-1, 2)
    choice = BradleyTerryAnnotator(slope=1.0).choose(small.rewards[drawn], generator)
    won, lost = (drawn.gather(1, c[:, None])[:, 0] for c in (choice, 1 - choice))
    mask = torch.ones_like(small.answers, dtype=torch.bool)
    ref_logp = small.ref_logp.float()
    optimizer = adam([small.policy], [lr])
    prompts = small.prompt.expand(batch, -1)
    order = passes(pairs, steps * batch, generator)
    for i in range(steps):
        linear_decay(optimizer, i, steps)
        rows = order[i * batch : (i + 1) * batch]
        sides = (
            (small.answers[k], mask[k], ref_logp[k]) for k in (won[rows], lost[rows])
        )
        dpo_step(small.policy, prompts, *sides, optimizer, small.beta, PPOSettings())
        if (i + 1) % every == 0:
            yield small.share()
