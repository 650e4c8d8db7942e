"""Language models by name or folder, and scalar heads on them.

Policies and reward models are what `AutoModelForCausalLM` and
`AutoModelForSequenceClassification` load: nothing here needs a format of its own.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    logging,
)

from ..policies import CausalLMPolicy, join
from ..rollouts import Rollout

# A fresh head is missing from the checkpoint by design, and reviews are tokenized
# whole though they are longer than the context: both would be warned of each time.
logging.set_verbosity_error()
logging.disable_progress_bar()

SHIPPED = Path(__file__).resolve().parents[2] / "data" / "gpt2-mini"


def load_tokenizer(name: str | Path = SHIPPED):
    """The tokenizer of a model, padding on the left; the end token pads if need be.

    Raises:
      ValueError: the folder does not hold a tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
    except (OSError, ValueError) as error:
        raise ValueError(f"model: no tokenizer in {str(name)!r}: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load(kind, name: str | Path, **options) -> nn.Module:
    try:
        return kind.from_pretrained(name, dtype=torch.float32, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"model: cannot load {str(name)!r}: {error}") from error


def load_policy(
    name: str | Path, tokenizer, *, max_new_tokens: int, device="cpu", allowed=None,
    kind: type[CausalLMPolicy] = CausalLMPolicy,
) -> CausalLMPolicy:  # fmt: skip
    """A causal language model (hub id or folder) as a policy, in float32.

    Raises:
      ValueError: the folder does not hold a causal language model.
    """
    model = _load(AutoModelForCausalLM, name)
    return kind(
        model, pad=tokenizer.pad_token_id, end=tokenizer.eos_token_id,
        max_new_tokens=max_new_tokens, allowed=allowed,
    ).to(device)  # fmt: skip


def freeze(module: nn.Module) -> nn.Module:
    """The module without gradients, for references and scorers."""
    return module.eval().requires_grad_(False)


class TokenScorer(nn.Module):
    """A language model with one scalar per token: reward model or critic.

    As a reward model it is read at the last real token of prompt + answer (`last`);
    as a critic at the token *before* each action (call it).

    What the network puts out is in nats of log-odds, as the comparisons taught it.
    Scores are score = (output − shift)/scale, with mean 0 and variance 1 on the
    reference's own answers, so that β means the same for every reward model. Both
    numbers stand in the config, as `reward_shift` and `reward_scale`.
    """

    def __init__(self, model: nn.Module, pad: int):
        super().__init__()
        self.model = model.eval()  # dropout off
        self.pad = pad
        if not hasattr(model.config, "reward_shift"):
            model.config.reward_shift, model.config.reward_scale = 0.0, 1.0

    @classmethod
    def from_language_model(cls, name, tokenizer, generator) -> "TokenScorer":
        """A scalar head on a pretrained body; head ~ N(0, 1/(d + 1)), no bias."""
        model = _load(AutoModelForSequenceClassification, name, num_labels=1)
        model.config.pad_token_id = tokenizer.pad_token_id
        head = model.score.weight
        draw = torch.randn(head.shape, generator=generator)
        head.data = draw / (head.shape[1] + 1) ** 0.5
        return cls(model, tokenizer.pad_token_id)

    @property
    def scale(self) -> float:
        """Nats of log-odds per unit of score."""
        return self.model.config.reward_scale

    def scores(self, prompts: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """The score at every position of prompt and answer, [B, P + T]."""
        batch = join(prompts, tokens, mask, self.pad)
        hidden = self.model.base_model(**batch, use_cache=False).last_hidden_state
        output = self.model.score(hidden)[..., 0].float()
        return (output - self.model.config.reward_shift) / self.scale

    def forward(self, prompts: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Values before each answer token, [B, T]."""
        start = prompts.shape[1] - 1
        return self.scores(prompts, tokens, mask)[:, start:-1]

    def last(self, prompts: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """The score at the last real token of each row, [B]."""
        at = prompts.shape[1] + mask.long().sum(-1) - 1
        return self.scores(prompts, tokens, mask).gather(-1, at[:, None])[:, 0]

    @torch.no_grad()
    def score(self, rollout: Rollout) -> Tensor:
        """[B] scores of a rollout, without gradient: what `training` calls a scorer."""
        return self.last(rollout.prompts, rollout.tokens, rollout.mask)

    @torch.no_grad()
    def normalise(self, rollouts: Rollout, batch_size: int = 256) -> None:
        """Mean 0 and variance 1 over these answers of the reference.

        Raises:
          ValueError: the scores do not differ.
        """
        rows = torch.arange(len(rollouts)).split(batch_size)
        found = torch.cat([self.score(rollouts[i]) for i in rows])
        self.standardise(found.mean().item(), found.std().item())

    def standardise(self, mean: float, spread: float) -> None:
        """From now on, scores that were `mean` are 0 and `mean + spread` are 1.

        Raises:
          ValueError: a spread of 0: the scores do not differ.
        """
        if not spread > 1e-6:
            raise ValueError(f"spread: the scores do not differ, their std is {spread}")
        config = self.model.config
        config.reward_shift += mean * config.reward_scale
        config.reward_scale *= spread

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)

    @classmethod
    def load(cls, folder: Path, tokenizer) -> "TokenScorer":
        """What `save` left.

        Raises:
          ValueError: the folder does not hold a whole reward model; it is named.
        """
        model = _load(AutoModelForSequenceClassification, folder)
        return cls(model, tokenizer.pad_token_id)
