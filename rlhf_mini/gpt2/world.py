"""What all stages of a run share: tokenizer, prompts, reference, judges, annotator."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .. import seeding
from ..annotators import BradleyTerryAnnotator, fit_choice_slope, human_choices
from ..datasets import load_ratings
from ..policies import CausalLMPolicy
from .evaluation import Scoreboard, Watched
from .models import TokenScorer, freeze, load_policy, load_tokenizer
from .reviews import Judges, TextScorer, load_judges, load_prompts
from .settings import Settings


@dataclass(frozen=True)
class World:
    """The fixed surroundings of a run; `build_world` makes one from `Settings`."""

    settings: Settings
    device: torch.device
    tokenizer: object
    train_prompts: Tensor  # [N, P]
    eval_prompts: Tensor  # [M, P], of other reviews than the training prompts
    reference: CausalLMPolicy  # frozen
    judges: Judges
    annotator: BradleyTerryAnnotator

    def change(self, **settings) -> "World":
        """The same world under other settings: `world.change(beta=0.05, steps=30)`."""
        return replace(self, settings=replace(self.settings, **settings))

    def policy(self, name: str | Path | None = None) -> CausalLMPolicy:
        """A fresh trainable copy of the starting model, or of another folder."""
        s = self.settings
        return load_policy(
            name or s.model, self.tokenizer, device=self.device,
            max_new_tokens=s.new_tokens,
        )  # fmt: skip

    def gold(self) -> TextScorer:
        """The annotator's taste as a scorer of rollouts."""
        return TextScorer(self.judges.gold, self.tokenizer)

    def board(self, reward_model: TokenScorer | None) -> Scoreboard:
        """Everybody who has an opinion."""
        return Scoreboard(self.judges, reward_model, self.tokenizer)

    def scorer(self, reward_model: TokenScorer) -> Watched:
        """What training maximises, watched by everybody else for the log."""
        if self.settings.reward == "gold":
            return Watched(self.gold(), self.board(reward_model))
        # the log has the reward model's opinion already, as `score`
        return Watched(reward_model.score, self.board(None))

    def draw_prompts(self, n: int, generator: torch.Generator) -> Tensor:
        """n training prompts, with replacement."""
        rows = torch.randint(len(self.train_prompts), (n,), generator=generator)
        return self.train_prompts[rows]


def human_slope(
    generator: torch.Generator, pairs: int = 200_000
) -> tuple[float, float]:
    """Slope of the human choice curve, nats per rating point, and its s.e."""
    ratings = [r.ratings for r in load_ratings()]
    drawn = torch.randint(len(ratings), (pairs, 2), generator=generator)
    drawn = drawn[drawn[:, 0] != drawn[:, 1]]
    return fit_choice_slope(*human_choices(ratings, drawn, generator))


def build_world(settings: Settings) -> World:
    """Load models and reviews, train the judges, measure the human noise."""
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device: {device!r} was asked for and there is none")
    tokenizer = load_tokenizer(settings.model)
    reference = load_policy(
        settings.model, tokenizer, max_new_tokens=settings.new_tokens, device=device
    )
    training = load_prompts(tokenizer, "train", settings.prompt_length)
    held_out = load_prompts(tokenizer, "eval", settings.prompt_length)
    # sentences come review by review: mix them before taking the first
    order = torch.randperm(len(held_out), generator=seeding.make(0))
    slope, _ = human_slope(seeding.make(0))
    return World(
        settings=settings,
        device=torch.device(device),
        tokenizer=tokenizer,
        train_prompts=training.to(device),
        eval_prompts=held_out[order[: settings.eval_prompts]].to(device),
        reference=freeze(reference),
        judges=load_judges(),
        annotator=BradleyTerryAnnotator(slope=slope, flip=settings.flip),
    )
