"""The main job, stage by stage: compare, fit a reward model, optimise.

The notebook and the command line call these same functions. Training is resumable:
a killed run goes on from its last checkpoint and draws what it would have drawn.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .. import seeding
from ..kl import AdaptiveKL
from ..offline_training import dpo_step
from ..policies import CausalLMPolicy
from ..rollouts import collect
from ..training import linear_decay, ppo_step, rloo_step
from . import checkpoints
from .comparisons import Comparisons, compare, fit_reward_model
from .models import TokenScorer, freeze
from .world import World


def make_comparisons(
    world: World, n: int, policy: CausalLMPolicy | None = None, *, seed=None
) -> Comparisons:
    """n prompts with answers of the policy (the reference by default), labelled."""
    s = world.settings
    generator = seeding.make(s.seed if seed is None else seed)
    return compare(
        policy or world.reference, world.draw_prompts(n, generator), world.gold(),
        world.annotator, s.answers, generator,
    )  # fmt: skip


def make_reward_model(
    world: World, data: Comparisons, start: TokenScorer | None = None
) -> TokenScorer:
    """A reward model fitted to the comparisons, normalised on the reference.

    Args:
      start: a reward model to go on from; a fresh head on the starting model if None.
    """
    s = world.settings
    generator = seeding.make(s.seed)
    if start is None:
        scorer = TokenScorer.from_language_model(s.model, world.tokenizer, generator)
    else:
        scorer = copy.deepcopy(start).requires_grad_(True)
    scorer = scorer.to(world.device)
    fit_reward_model(
        scorer, data, generator, lr=s.rm_lr, batch=s.rm_batch, epochs=s.rm_epochs
    )
    # fresh answers: on those it was trained on, its scores spread too far
    prompts = world.draw_prompts(1024, generator)
    scorer.normalise(collect(world.reference, prompts, generator))
    return freeze(scorer)


def run_ppo(
    world: World,
    reward_model: TokenScorer,
    *,
    policy: CausalLMPolicy | None = None,
    folder: Path | None = None,
) -> tuple[CausalLMPolicy, list[dict]]:
    """Token-level PPO with a critic initialised from the reward model.

    Args:
      policy: where to start; the world's model if None.
      folder: where metrics and checkpoints go; None keeps none.

    Returns:
      The trained policy and one row of metrics per iteration.
    """
    s = world.settings
    generator = seeding.make(s.seed)
    policy = policy or world.policy()
    critic = copy.deepcopy(reward_model).requires_grad_(True)
    optimizer = adam([policy, critic], [s.lr, s.critic_lr])
    controller = FixedKL(s.beta)
    if s.target_kl:
        controller = AdaptiveKL(s.beta, s.target_kl, s.horizon)
    score = world.scorer(reward_model)

    def step(i):
        linear_decay(optimizer, i, s.steps)
        prompts = world.draw_prompts(s.batch, generator)
        row = ppo_step(
            policy, critic, world.reference, score, prompts, optimizer, controller,
            s.ppo(), generator,
        )  # fmt: skip
        return row | score.take()

    state = {"policy": policy, "critic": critic, "optimizer": optimizer}
    state["controller"] = controller
    return policy, train(world, step, state, generator, folder)


def run_rloo(
    world: World,
    reward_model: TokenScorer,
    *,
    policy: CausalLMPolicy | None = None,
    folder: Path | None = None,
) -> tuple[CausalLMPolicy, list[dict]]:
    """REINFORCE with a leave-one-out baseline: no critic, one update per rollout."""
    s = world.settings
    generator = seeding.make(s.seed)
    policy = policy or world.policy()
    optimizer = adam([policy], [s.lr])
    score = world.scorer(reward_model)

    def step(i):
        linear_decay(optimizer, i, s.steps)
        prompts = world.draw_prompts(s.batch // s.group, generator)
        row = rloo_step(
            policy, world.reference, score, prompts, optimizer, s.beta, s.group,
            s.ppo(), generator,
        )  # fmt: skip
        return row | score.take()

    state = {"policy": policy, "optimizer": optimizer}
    return policy, train(world, step, state, generator, folder)


def run_dpo(
    world: World,
    data: Comparisons,
    *,
    policy: CausalLMPolicy | None = None,
    folder: Path | None = None,
) -> tuple[CausalLMPolicy, list[dict]]:
    """DPO on the very comparisons that the reward model saw; nothing is sampled.

    Every pass is over all pairs in a new order; `steps` may end in the midst of one.
    """
    s = world.settings
    generator = seeding.make(s.seed)
    policy = policy or world.policy()
    optimizer = adam([policy], [s.lr])
    prompts, chosen, rejected = data.pairs()
    order = passes(len(prompts), s.steps * s.batch, generator)

    def step(i):
        linear_decay(optimizer, i, s.steps)
        rows = order[i * s.batch : (i + 1) * s.batch]
        return dpo_step(
            policy, prompts[rows], tuple(x[rows] for x in chosen),
            tuple(x[rows] for x in rejected), optimizer, s.beta, s.ppo(),
        )  # fmt: skip

    state = {"policy": policy, "optimizer": optimizer}
    return policy, train(world, step, state, generator, folder)


def passes(n: int, wanted: int, generator: torch.Generator) -> Tensor:
    """The first `wanted` row numbers of passes over n rows, each in a new order."""
    rounds = -(-wanted // n)
    orders = [torch.randperm(n, generator=generator) for _ in range(rounds)]
    return torch.cat(orders)[:wanted]


def adam(modules, rates) -> torch.optim.Optimizer:
    """AdamW without decay, one group per module; ε as in the published PPO code."""
    groups = [
        {"params": list(m.parameters()), "lr": lr}
        for m, lr in zip(modules, rates, strict=True)
    ]
    return torch.optim.AdamW(groups, weight_decay=0.0, eps=1e-5, fused=True)


class FixedKL:
    """A weight that never moves, with the interface of `AdaptiveKL`."""

    def __init__(self, beta: float):
        self.beta = beta

    def update(self, kl: float, n: int) -> None:
        pass

    def state_dict(self) -> dict:
        return {"beta": self.beta}

    def load_state_dict(self, state: dict) -> None:
        self.beta = state["beta"]


def train(
    world: World,
    step: Callable[[int], dict],
    state: dict,
    generator: torch.Generator,
    folder: Path | None = None,
) -> list[dict]:
    """Call `step(i)` for each step, with a bar, a metrics file and checkpoints.

    Args:
      state: name → what has `state_dict` and `load_state_dict`: saved and restored.
      folder: where `metrics.jsonl` and `checkpoint.safetensors` go; None keeps none.

    Returns:
      The rows of all steps, those of before a resume included.
    """
    s = world.settings
    rows, file = [], folder and Path(folder) / "checkpoint.safetensors"
    if file and s.resume and file.exists():
        saved = checkpoints.load(file)
        for name, thing in state.items():
            thing.load_state_dict(saved[name])
        generator.set_state(saved["generator"])
        rows = saved["rows"]
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        # a killed run has logged steps that its checkpoint does not know
        _write_rows(file.with_name("metrics.jsonl"), rows, "w")
    first = len(rows)
    bar = tqdm(range(first, s.steps), initial=first, total=s.steps, desc=s.method)
    for i in bar:
        rows.append({"step": i} | step(i))
        known = [k for k in ("score", "kl_to_ref", "accuracy") if k in rows[-1]]
        bar.set_postfix({k: f"{rows[-1][k]:.2f}" for k in known})
        if file:
            _write_rows(file.with_name("metrics.jsonl"), rows[-1:], "a")
            if (i + 1) % s.checkpoint_every == 0 or i + 1 == s.steps:
                saved = {k: v.state_dict() for k, v in state.items()}
                saved |= {"generator": generator.get_state(), "rows": rows}
                checkpoints.save(file, saved)
    return rows


def _write_rows(path: Path, rows: list[dict], mode: str) -> None:
    with path.open(mode, encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
