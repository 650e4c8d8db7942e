"""Every option of a run, with its help text: the command line is made from this."""

import argparse
import os
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

import torch

from ..checks import check_between, check_positive
from ..training import PPOSettings
from .models import SHIPPED

METHODS = ("ppo", "rloo", "dpo", "best-of-n")


def option(default, text: str):
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """One run from prompts to a policy. All logs natural, KL in nats per answer."""

    model: str = option(str(SHIPPED), "causal LM to start from: a folder or a hub id")
    out: str = option("out/ppo", "folder for everything the run leaves")
    data: str = option(
        "",
        "folder that holds preferences and reward model; shared by runs (default: OUT)",
    )
    method: str = option("ppo", "ppo, rloo, dpo or best-of-n")
    seed: int = option(0, "seed of everything that is drawn")
    device: str = option("auto", "cpu, cuda, or auto: cuda where there is one")
    prompt_length: int = option(8, "tokens of a prompt")
    new_tokens: int = option(24, "most tokens of an answer")

    comparisons: int = option(40960, "prompts whose answers the annotator compares")
    answers: int = option(2, "answers per comparison: 2 is a pair, 4 a best-of-four")
    flip: float = option(0.0, "share of labels that are wrong whatever the answers")
    rm_lr: float = option(1e-3, "reward model: learning rate, falling to 0")
    rm_batch: int = option(16, "reward model: comparisons per update")
    rm_epochs: int = option(1, "reward model: passes over the comparisons")
    reward: str = option(
        "model", "model: the learnt reward; gold: the annotator's own taste"
    )

    steps: int = option(60, "updates of RLOO or DPO, iterations of PPO")
    batch: int = option(128, "answers per update; pairs for DPO")
    lr: float = option(5e-5, "policy: learning rate, falling to 0")
    critic_lr: float = option(1e-4, "critic: learning rate, falling to 0")
    beta: float = option(
        0.1, "KL weight, reward per nat: larger = closer to the reference"
    )
    target_kl: float = option(0.0, "adaptive beta towards this KL; 0 keeps beta fixed")
    horizon: float = option(
        1024.0, "adaptive beta: answers until an error is acted upon"
    )
    group: int = option(4, "RLOO: answers per prompt")
    gamma: float = option(1.0, "discount; below 1 short answers win")
    lam: float = option(0.95, "GAE's lambda")
    clip_eps: float = option(0.2, "clip range of the ratio")
    value_clip: float = option(0.2, "clip range of the critic, reward units")
    value_weight: float = option(0.1, "weight of the critic's loss")
    epochs: int = option(1, "PPO: passes over each rollout")
    minibatches: int = option(2, "PPO: parts of each pass")
    max_grad_norm: float = option(1.0, "gradient clipping, actor and critic apart")
    whiten: bool = option(True, "PPO: advantages to mean 0 and variance 1")

    eval_prompts: int = option(512, "held-out prompts at the end")
    best_of: int = option(32, "best-of-n: answers per held-out prompt")
    checkpoint_every: int = option(10, "iterations between checkpoints")
    resume: bool = option(False, "go on where a killed run in OUT stopped")

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method: want one of {METHODS}, found {self.method!r}")
        if self.reward not in ("model", "gold"):
            raise ValueError(f"reward: want 'model' or 'gold', found {self.reward!r}")
        for f in fields(self):
            value = getattr(self, f.name)
            if type(f.default) is int and type(value) is not int:
                raise ValueError(f"{f.name}: want a whole number, found {value!r}")
        try:
            self.device == "auto" or torch.device(self.device)
        except RuntimeError:
            raise ValueError(f"device: no such device, {self.device!r}") from None
        for name in ("answers", "group"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name}: want ≥ 2, found {getattr(self, name)}")
        check_between(0, 0.5, flip=self.flip)
        for f in fields(self):
            # these may be 0; all but seed and target_kl are checked by who uses them
            zero = f.name in ("seed", "flip", "target_kl", "gamma", "lam")
            if not zero and not isinstance(f.default, str | bool):
                check_positive(**{f.name: getattr(self, f.name)})
        check_between(0, float("inf"), target_kl=self.target_kl, seed=self.seed)
        if self.method == "rloo" and self.batch % self.group:
            raise ValueError(
                f"batch: want a multiple of group {self.group}, found {self.batch}"
            )
        if self.target_kl and self.horizon <= self.batch / 5:
            raise ValueError(
                f"horizon: want more than a fifth of batch {self.batch}, found "
                f"{self.horizon}: beta could become negative"
            )
        self.ppo()  # checks the rest

    def ppo(self) -> PPOSettings:
        names = [f.name for f in fields(PPOSettings)]
        return PPOSettings(**{n: getattr(self, n) for n in names})

    @property
    def out_folder(self) -> Path:
        return Path(self.out)

    @property
    def data_folder(self) -> Path:
        return Path(self.data or self.out)


# the notebook's sizes: the same run, fewer comparisons and steps
FAST = {
    "comparisons": 1536, "steps": 12, "eval_prompts": 256, "best_of": 16
}  # fmt: skip


def from_environment(**changes) -> Settings:
    """Settings of the profile named by RLHF_MINI_PROFILE: fast (default) or full.

    Raises:
      ValueError: another profile.
    """
    profile = os.environ.get("RLHF_MINI_PROFILE", "fast")
    if profile not in ("fast", "full"):
        raise ValueError(f"RLHF_MINI_PROFILE: want fast or full, found {profile!r}")
    return Settings(**(FAST if profile == "fast" else {}) | changes)


def parse(argv=None) -> Settings:
    """Settings from command-line words; a wrong one ends with its message."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_mini.gpt2",
        description="Train a language model from preferences: sample, compare, fit a "
        "reward model, optimise, and judge by those who never took part.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for f in fields(Settings):
        assert f.default is not MISSING
        name = "--" + f.name.replace("_", "-")
        if f.type is bool or f.type == "bool":
            parser.add_argument(
                name, action=argparse.BooleanOptionalAction, default=f.default,
                help=f.metadata["help"],
            )  # fmt: skip
        else:
            kind = type(f.default)
            parser.add_argument(
                name, type=kind, default=f.default, help=f.metadata["help"]
            )
    try:
        return Settings(**vars(parser.parse_args(argv)))
    except ValueError as error:
        parser.error(str(error))
