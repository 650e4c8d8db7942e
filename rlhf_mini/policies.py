"""What acts: tables that can be enumerated, and any causal language model.

Every policy has `.sample(prompts, generator) -> Rollout` and a differentiable
`.logp(prompts, tokens, mask) -> [B, T]`; every critic is called with the same three
and returns [B, T]. Temperature is 1 and nothing is truncated, in both: a policy that
is scored at another temperature than it sampled at is silently off-policy.
"""

import torch
from torch import Tensor, nn

from .checks import check_between, check_index, check_logits, check_same_shape
from .logprobs import entropy, token_logp
from .rollouts import Rollout


def draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One index per row with probability softmax(logits), [..., K] → [...].

    Inverts the distribution function in float64. The uniform numbers come from the
    generator's device, so that one seed draws the same on CPU and GPU.

    Raises:
      ValueError: a row of logits is no distribution (NaN, +inf, or only −inf).
    """
    check_logits(logits=logits)
    cumulative = logits.double().softmax(-1).cumsum(-1)
    u = torch.rand(
        (*logits.shape[:-1], 1), dtype=torch.float64, generator=generator,
        device=generator.device,
    ).to(logits.device)  # fmt: skip
    # right=True: an entry of probability 0 can never be hit
    return torch.searchsorted(cumulative, u * cumulative[..., -1:], right=True)[..., 0]


class SequencePolicy(nn.Module):
    """A free softmax at every prefix: any law over the V^T sequences of each state.

    `logits[s, i]` belongs to the i-th prefix of state s, counted breadth first: the
    empty one, then those of one token, then of two, …
    With an `end` token answers may be shorter: what stands behind the first end is a
    pad (the end token again), has mask 0 and log-probability 0.
    """

    def __init__(
        self,
        vocab: int,
        length: int,
        states: int = 1,
        dtype=torch.float32,
        end: int | None = None,
    ):
        super().__init__()
        if vocab < 2 or length < 1 or states < 1:
            raise ValueError(
                "want vocab ≥ 2, length ≥ 1, states ≥ 1, "
                f"found {vocab}, {length}, {states}"
            )
        if end is not None:
            check_between(0, vocab - 1, end=end)
        self.vocab, self.length, self.end = vocab, length, end
        # prefixes shorter than t come before those of length t
        self.offsets = [(vocab**t - 1) // (vocab - 1) for t in range(length + 1)]
        shape = (states, self.offsets[-1], vocab)
        self.logits = nn.Parameter(torch.zeros(shape, dtype=dtype))

    def nodes(self, tokens: Tensor) -> Tensor:
        """The number of the prefix before each token, [B, T]."""
        number = torch.zeros_like(tokens[:, 0])
        columns = []
        for t in range(tokens.shape[1]):
            columns.append(self.offsets[t] + number)
            number = number * self.vocab + tokens[:, t]
        return torch.stack(columns, dim=1)

    def alive(self, tokens: Tensor) -> Tensor:
        """Where a token is an action, [B, T] bool: no end token stands before it."""
        if self.end is None:
            return torch.ones_like(tokens).bool()
        ends = (tokens == self.end).long()
        return ends.cumsum(-1) - ends == 0

    def tree(self) -> Tensor:
        """log π(token | state, prefix) at every prefix, [states, N, V]: exact_trees.py.

        Behind an end token the law is certain to repeat it, so that a short answer is
        one path of the tree, with its own probability.
        """
        law = self.logits.log_softmax(-1)
        if self.end is None:
            return law
        ended = [torch.zeros(1).bool()]
        for _ in range(self.length - 1):
            after = ended[-1][:, None].repeat(1, self.vocab)
            after[:, self.end] = True
            ended.append(after.flatten())
        pad = torch.full_like(law[0, 0], -torch.inf)
        pad[self.end] = 0.0
        return torch.where(torch.cat(ended).to(law.device)[:, None], pad, law)

    def logp(self, prompts: Tensor, tokens: Tensor, mask: Tensor | None = None):
        """log π(token | state, prefix) in nats, [B, T], differentiable; 0 on pads."""
        logp = token_logp(self.logits[prompts[:, None], self.nodes(tokens)], tokens)
        return logp if self.end is None else logp.where(self.alive(tokens), 0.0)

    @torch.no_grad()
    def sample(self, prompts: Tensor, generator: torch.Generator) -> Rollout:
        tokens = prompts.new_zeros(len(prompts), 0)
        for _ in range(self.length):
            # the last of the nodes is that of the prefix sampled so far
            grown = torch.cat([tokens, torch.zeros_like(prompts)[:, None]], dim=1)
            here = self.logits[prompts, self.nodes(grown)[:, -1]]
            token = draw(here, generator)
            if self.end is not None:
                token = token.masked_fill((tokens == self.end).any(-1), self.end)
            tokens = torch.cat([tokens, token[:, None]], dim=1)
        logits = self.logits[prompts[:, None], self.nodes(tokens)]
        mask = self.alive(tokens)
        return Rollout(
            prompts=prompts, tokens=tokens, mask=mask,
            logp=token_logp(logits, tokens).where(mask, 0.0),
            entropy=entropy(logits).where(mask, 0.0),
        )  # fmt: skip


class TabularPolicy(SequencePolicy):
    """A softmax bandit: one action of K, a sequence of length one."""

    def __init__(self, actions: int, states: int = 1, dtype=torch.float32):
        super().__init__(vocab=actions, length=1, states=states, dtype=dtype)

    def probs(self) -> Tensor:
        """[states, K]."""
        return self.logits[:, 0].softmax(-1)


class SequenceCritic(nn.Module):
    """One free value per state and prefix, for a `SequencePolicy` of the same size."""

    def __init__(self, policy: SequencePolicy):
        super().__init__()
        self.nodes = policy.nodes
        self.table = nn.Parameter(torch.zeros_like(policy.logits[..., 0]))

    def forward(self, prompts: Tensor, tokens: Tensor, mask: Tensor | None = None):
        return self.table[prompts[:, None], self.nodes(tokens)]


def real(prompts: Tensor, pad: int) -> Tensor:
    """Where the tokens of prompts stand that are padded on the left, [B, P] bool.

    Raises:
      ValueError: a prompt ends in a pad: it is padded on the right, or empty.
    """
    if (prompts[:, -1] == pad).any():
        row = int((prompts[:, -1] == pad).nonzero()[0])
        raise ValueError(f"prompts: row {row} ends in a pad; want pads on the left")
    # only what leads is a pad: the end token may be the pad, and stand in a prompt
    return (prompts != pad).cumsum(-1) > 0


def join(prompts: Tensor, tokens: Tensor, mask: Tensor, pad: int):
    """Prompt and answer as one input of a language model.

    Pads on the left of the prompt and on the right of the answer get no attention
    and do not count as positions, so padded and unpadded batches agree.

    Returns:
      A dict with `input_ids`, `attention_mask`, `position_ids`, each [B, P + T].
    """
    check_same_shape(tokens=tokens, mask=mask)
    attention = torch.cat([real(prompts, pad), mask.bool()], dim=1)
    return {
        # what stands in a pad is never used, so that it may be anything
        "input_ids": torch.cat([prompts, tokens], dim=1).where(attention, pad),
        "attention_mask": attention.long(),
        "position_ids": (attention.long().cumsum(-1) - 1).clamp(min=0),
    }


class CausalLMPolicy(nn.Module):
    """A causal language model as a policy: prompt in, answer out.

    Sampling reuses the key–value cache and keeps the log-probabilities of that very
    pass. The answer ends after `max_new_tokens` tokens or with the end token, which
    is itself an action. With `allowed`, the law is restricted to those tokens and
    renormalised: a vocabulary small enough to enumerate on the real model.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        pad: int,
        end: int | None,
        max_new_tokens: int,
        allowed: Tensor | None = None,
    ):
        super().__init__()
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: want ≥ 1, found {max_new_tokens}")
        self.model = model.eval()  # dropout off: old and new log-probs must agree
        self.pad, self.end, self.max_new_tokens = pad, end, max_new_tokens
        vocab = model.config.vocab_size
        self.restricted = allowed is not None
        allowed = allowed if self.restricted else torch.arange(vocab)
        check_index(vocab, allowed=allowed)
        if len(allowed.unique()) < len(allowed):
            raise ValueError("allowed: want distinct ids, found one twice")
        slot = torch.full((vocab,), -1)
        slot[allowed] = torch.arange(len(allowed))
        self.register_buffer("allowed", allowed, persistent=False)
        self.register_buffer("slot", slot, persistent=False)
        # a pad is no action: it would count in the mask and vanish from the text
        never = (allowed == pad) & (pad != end)
        self.register_buffer("never", never, persistent=False)

    def _law(self, logits: Tensor) -> Tensor:
        logits = logits[..., self.allowed] if self.restricted else logits
        return logits.float().masked_fill(self.never, -torch.inf)

    def logits(self, prompts: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Logits that score each answer token, [B, T, K]: one slot before it."""
        batch = join(prompts, tokens, mask, self.pad)
        keep = tokens.shape[1] + 1
        out = self.model(**batch, use_cache=False, logits_to_keep=keep)
        return self._law(out.logits[:, :-1])

    def logp(self, prompts: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """log π(token | prompt, prefix) in nats, [B, T]; 0 on pads; differentiable."""
        slots = self.slot[tokens.where(mask.bool(), self.allowed[0])]
        if (slots < 0).any():
            raise ValueError("tokens: found an id outside `allowed`")
        logp = token_logp(self.logits(prompts, tokens, mask), slots)
        return torch.where(mask.bool(), logp, 0.0)

    @torch.no_grad()
    def sample(self, prompts: Tensor, generator: torch.Generator) -> Rollout:
        prompts = prompts.to(self.allowed.device)
        attention = real(prompts, self.pad)
        position = (attention.long().cumsum(-1) - 1).clamp(min=0)
        alive = torch.ones_like(attention[:, 0])
        ids, past, columns = prompts, None, []
        for _ in range(self.max_new_tokens):
            out = self.model(
                input_ids=ids, attention_mask=attention.long(), position_ids=position,
                cache=past, use_cache=True, logits_to_keep=1,
            )  # fmt: skip
            past, law = out.cache, self._law(out.logits[:, -1])
            slot = draw(law, generator)
            token = torch.where(alive, self.allowed[slot], self.pad)
            logp = torch.where(alive, token_logp(law[:, None], slot[:, None])[:, 0], 0)
            columns.append((token, alive, logp, torch.where(alive, entropy(law), 0)))
            ids, position = token[:, None], position[:, -1:] + 1
            attention = torch.cat([attention, alive[:, None]], dim=1)
            if self.end is not None:
                alive = alive & (token != self.end)
            if not alive.any():
                break
        tokens, mask, logp, spread = (
            torch.stack(c, 1) for c in zip(*columns, strict=True)
        )
        return self._pad_to_length(prompts, tokens, mask, logp, spread)

    def _pad_to_length(self, prompts, tokens, mask, logp, spread) -> Rollout:
        short = (0, self.max_new_tokens - tokens.shape[1])
        pad = nn.functional.pad
        return Rollout(
            prompts=prompts, tokens=pad(tokens, short, value=self.pad),
            mask=pad(mask, short, value=False), logp=pad(logp, short),
            entropy=pad(spread, short),
        )  # fmt: skip
