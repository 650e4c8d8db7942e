"""A language small enough to list every answer; a gymnasium environment too.

A `TokenWorld` has a few prompts, a few words, answers of at most T words, a score for
every answer and a reference policy. An end word, if there is one, makes answers
shorter; it is an action. The world is held as tensors, so that the exact functions, the
policies of policies.py and the steps of training.py all read the same object.

`rlhf_mini/TokenWorld-v0` is the same world one word at a time: an episode is an answer,
the reward is 0 until the answer ends and its score then. The KL penalty is no part of
the environment, because it depends on the policy: add it with `kl.shape_rewards`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from .checks import check_between, check_logits, check_number
from .exact import enumerate_sequences
from .exact_trees import sequence_logp
from .policies import SequenceCritic, SequencePolicy
from .rollouts import Rollout

ENV_ID = "rlhf_mini/TokenWorld-v0"


class TokenWorld:
    """Prompts, words, scores and a reference; everything listed.

    Args:
      words: V names of tokens.
      length: T, the longest answer.
      score: score(prompt number, words of an answer) → reward units; it is asked once
        about every answer, so it may be slow.
      ref_logits: of π_ref, [S, N, V] as in `SequencePolicy`; N = 1 + V + … + Vᵀ⁻¹.
      end: the number of the word that ends an answer, or None for fixed length.
      prompts: S names.

    Attributes:
      tokens, mask: the M answers in the order of counting, [M, T]; behind an end the
        end word is repeated and the mask is 0.
      scores: r(prompt, answer), [S, M].
      rewards: the same on a tree, paid by the last word, [S, N, V] (exact_trees.py).

    Raises:
      ValueError: fewer than two words, logits of a wrong shape, a score that is not
        finite, or an end that is no word.

    >>> two = TokenWorld(["stop", "go"], 2, lambda prompt, words: len(words),
    ...                  torch.zeros(1, 3, 2), end=0)
    >>> [two.text(row) for row in two.tokens], two.scores
    (['stop', 'go stop', 'go go'], tensor([[1., 2., 2.]]))
    """

    def __init__(
        self,
        words: Sequence[str],
        length: int,
        score: Callable[[int, tuple[str, ...]], float],
        ref_logits: Tensor,
        end: int | None = None,
        prompts: Sequence[str] = ("",),
    ):
        self.words, self.prompts = tuple(words), tuple(prompts)
        self.length, self.end = length, end
        # it checks the sizes
        reference = SequencePolicy(
            self.vocab, length, len(self.prompts), ref_logits.dtype, end
        )
        check_logits(ref_logits=ref_logits)
        if ref_logits.shape != reference.logits.shape:
            found = f"{list(reference.logits.shape)}, found {list(ref_logits.shape)}"
            raise ValueError(f"ref_logits: want shape {found}")
        self.ref_logits = ref_logits.detach().clone()
        every = enumerate_sequences(self.vocab, length)
        alive = reference.alive(every)
        # behind an end only the end: one path per answer
        self._paths = (alive | (every == end)).all(-1)
        self.tokens, self.mask = every[self._paths], alive[self._paths]
        self.scores = self._ask(score)
        self.rewards = self._on_a_tree()

    @property
    def vocab(self) -> int:
        return len(self.words)

    def _ask(self, score) -> Tensor:
        table = []
        for s in range(len(self.prompts)):
            for row, n in zip(self.tokens.tolist(), self.mask.sum(-1), strict=True):
                answer = tuple(self.words[i] for i in row[: int(n)])
                r = score(s, answer)
                check_number(**{f"score({s}, {answer})": r})
                table.append(float(r) + 0.0)  # no −0
        scores = torch.tensor(table, dtype=self.ref_logits.dtype)
        return scores.view(len(self.prompts), -1)

    def _on_a_tree(self) -> Tensor:
        last = self.mask.sum(-1, keepdim=True) - 1  # [M, 1]
        policy = SequencePolicy(self.vocab, self.length)
        node = policy.nodes(self.tokens).gather(1, last)[:, 0]
        word = self.tokens.gather(1, last)[:, 0]
        rewards = torch.zeros_like(self.ref_logits)
        rewards[:, node, word] = self.scores
        return rewards

    def policy(self, copies: int = 1) -> SequencePolicy:
        """A free softmax at every prefix, at the reference; a table to be trained.

        State c·S + s is prompt s of copy c: many seeds train in one tensor.

        >>> negations().policy(copies=5).logits.shape
        torch.Size([10, 85, 4])
        """
        states = copies * len(self.prompts)
        dtype = self.ref_logits.dtype
        policy = SequencePolicy(self.vocab, self.length, states, dtype, self.end)
        with torch.no_grad():
            policy.logits.copy_(self.ref_logits.repeat(copies, 1, 1))
        return policy

    def reference(self, copies: int = 1) -> SequencePolicy:
        """The same, frozen."""
        return self.policy(copies).requires_grad_(False)

    def critic(self, copies: int = 1) -> SequenceCritic:
        """A free value at every prefix, all 0 at first."""
        return SequenceCritic(self.policy(copies))

    def ask(self, each: int, copies: int = 1) -> Tensor:
        """`each` times every state, [each · copies · S]; answers of one prompt are
        neighbours, as group methods want them.

        >>> negations().ask(2)
        tensor([0, 0, 1, 1])
        """
        states = copies * len(self.prompts)
        return torch.arange(states).repeat_interleave(each)

    def answer_numbers(self, tokens: Tensor) -> Tensor:
        """The place of each answer in the list, [B, T] → [B].

        Raises:
          ValueError: it is no answer: something else than the end follows an end.
        """
        place = self.vocab ** torch.arange(self.length - 1, -1, -1)
        numbers = (self._paths.cumsum(0) - 1)[leaf := (tokens * place).sum(-1)]
        if not self._paths[leaf].all():
            row = int((~self._paths[leaf]).nonzero()[0])
            raise ValueError(f"tokens: row {row} goes on behind its end")
        return numbers

    def score(self, rollout: Rollout) -> Tensor:
        """What the answers of a rollout are worth, [B], reward units."""
        asked = rollout.prompts % len(self.prompts)
        return self.scores[asked, self.answer_numbers(rollout.tokens)]

    def law(self, tree: Tensor) -> Tensor:
        """Log-probability of every answer, [..., N, V] → [..., M], nats.

        With `scores` it makes the world a bandit for the functions of exact.py.

        Args:
          tree: what `policy.tree()` gives.
        """
        return sequence_logp(tree)[..., self._paths]

    def text(self, tokens: Tensor) -> str:
        """The words of one answer, [T]; nothing behind the end."""
        ids = [int(i) for i in tokens]
        if self.end in ids:
            ids = ids[: ids.index(self.end) + 1]
        return " ".join(self.words[i] for i in ids)


# What follows a word, in the order of WORDS; first row: what an answer begins with.
WORDS = (".", "good", "very", "not")
AFTER = {
    "": (0.10, 0.40, 0.25, 0.25),
    ".": (0.25, 0.25, 0.25, 0.25),  # never used: the answer has ended
    "good": (0.60, 0.15, 0.10, 0.15),
    "very": (0.10, 0.55, 0.25, 0.10),
    "not": (0.10, 0.55, 0.30, 0.05),
}


def negations(length: int = 4, dtype=torch.float64) -> TokenWorld:
    """Four words, of which one turns the meaning of what follows round.

    `good` scores 1, each `very` before it adds 1, each `not` changes the sign, and the
    full stop ends. The prompt "praise" is paid the sum, "complain" minus the sum.
    What `not` is worth is decided by words that come later: credit assignment.

    Args:
      length: the longest answer; 4 gives 121 answers.
      dtype: of all its tensors.

    Returns:
      A `TokenWorld` with two prompts.

    >>> feeling(("not", "very", "good", "."))
    -2.0
    >>> world = negations()
    >>> world.scores.shape, world.text(world.tokens[0])
    (torch.Size([2, 121]), '.')
    """
    table = torch.tensor([AFTER[word] for word in WORDS], dtype=dtype).log()
    rows = [torch.tensor([AFTER[""]], dtype=dtype).log()]
    for depth in range(1, length):
        rows.append(table.repeat(len(WORDS) ** (depth - 1), 1))
    ref_logits = torch.cat(rows).expand(2, -1, -1)

    def score(prompt, words):
        return feeling(words) * (1 - 2 * prompt)

    return TokenWorld(WORDS, length, score, ref_logits, 0, ("praise", "complain"))


def feeling(words: Sequence[str]) -> float:
    """How good the answer says it was: the rule behind `negations`.

    >>> feeling(("not", "not", "good")), feeling(("very", ".")), feeling(("good",) * 2)
    (1.0, 0.0, 2.0)
    """
    total, sign, strength = 0.0, 1, 1
    for word in words:
        if word == "not":
            sign = -sign
        elif word == "very":
            strength += 1
        elif word == "good":
            total, sign, strength = total + sign * strength, 1, 1
    return total


class TokenWorldEnv(gym.Env):
    """One answer, one word per step; the score comes with the last word.

    The observation is the number of the prompt and the words so far; V stands where
    nothing has been written. `reset(options={"prompt": 1})` chooses the prompt. An
    answer that reaches T words is finished (terminated), not cut off (truncated).

    Args:
      world: a `TokenWorld`; None is `negations()`.
      render_mode: "ansi" renders the prompt and the words so far.

    Raises:
      ValueError: the action is no word, the answer has ended, or no such prompt.

    >>> env = TokenWorldEnv()
    >>> observation, _ = env.reset(seed=0, options={"prompt": 1})
    >>> observation["prompt"], observation["tokens"].tolist()
    (1, [4, 4, 4, 4])
    >>> [env.step(a)[1:3] for a in (3, 1, 0)]   # "not good ." as a complaint
    [(0.0, False), (0.0, False), (1.0, True)]
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}  # fps: the checker asks

    def __init__(self, world: TokenWorld | None = None, render_mode: str | None = None):
        self.world = world or negations()
        self.render_mode = render_mode
        size, length = self.world.vocab, self.world.length
        self.observation_space = spaces.Dict(
            {
                "prompt": spaces.Discrete(len(self.world.prompts)),
                "tokens": spaces.MultiDiscrete([size + 1] * length),
            }
        )
        self.action_space = spaces.Discrete(size)
        self._prompt, self._written = 0, []

    def _observation(self):
        empty = self.world.length - len(self._written)
        tokens = self._written + [self.world.vocab] * empty
        return {"prompt": self._prompt, "tokens": np.array(tokens, dtype=np.int64)}

    def _ended(self) -> bool:
        full = len(self._written) == self.world.length
        return full or (self._written[-1:] == [self.world.end])

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        count = len(self.world.prompts)
        self._prompt = int(self.np_random.integers(count))
        if options and "prompt" in options:
            check_between(0, count - 1, prompt=options["prompt"])
            self._prompt = int(options["prompt"])
        self._written = []
        return self._observation(), {}

    def step(self, action: int):
        if self._ended():
            raise ValueError("action: the answer has ended; call reset")
        word = np.asarray(action)
        if not np.issubdtype(word.dtype, np.integer) or word not in range(
            self.world.vocab
        ):
            raise ValueError(
                f"action: want 0 to {self.world.vocab - 1}, found {action}"
            )
        self._written.append(int(word))
        ended, reward = self._ended(), 0.0
        if ended:
            row = self._written + [self.world.end] * (
                self.world.length - len(self._written)
            )
            number = self.world.answer_numbers(torch.tensor([row]))[0]
            reward = float(self.world.scores[self._prompt, number])
        return self._observation(), reward, ended, False, {}

    def render(self):
        if self.render_mode != "ansi":
            return None
        words = [self.world.words[i] for i in self._written]
        return " ".join([f"{self.world.prompts[self._prompt]}:", *words])


if ENV_ID not in gym.registry:
    gym.register(id=ENV_ID, entry_point="rlhf_mini.token_world:TokenWorldEnv")
