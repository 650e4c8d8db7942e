"""Whole runs on the Hopper: what is learnt from whom, with checkpoints and resume.

A job names a judge's rule, and how the learner meets it: through comparisons, or (the
yardstick) as a reward at every moment. What was learnt is always tested on gymnasium's
own Hopper, which integrates with another rule than the one trained on.
"""

import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from rlhf_mini import seeding
from rlhf_mini.annotators import BradleyTerryAnnotator
from rlhf_mini.gpt2 import checkpoints

from . import body, hopper, judges, recorded
from .learner import PreferenceLearner, Settings, schedule
from .trajectories import Trajectories, act

# like a person's: sure of a quarter of a turn (odds of 12 to 1), careless 1 time in 20
ANNOTATOR = BradleyTerryAnnotator(slope=10.0, flip=0.05)


@dataclass(frozen=True)
class Job:
    """What one run learns from."""

    rule: str  # of judges.RULES; or "votes": what was voted before, and no questions
    comparisons: int = 700  # 0: the rule itself is the reward
    first: int = 200  # of them at once
    half: float = 10.0  # see learner.schedule
    iterations: int = 60


SHORT = {"comparisons": 500, "first": 150, "iterations": 40}
JOBS = {
    "careful": Job("careful", half=30.0, iterations=150),
    "careful, 60": Job("careful"),
    "rewarded": Job("careful", comparisons=0),
    "careful, 500": Job("careful", **SHORT),
    "careful, 500, all at first": Job("careful", **SHORT | {"first": 500}),
    "careless": Job("careless", **SHORT),
    "standing": Job("standing", first=150, half=30.0, iterations=100),
    "votes": Job("votes", comparisons=0),
}
EVERY = 10  # iterations between checkpoints


def make(
    job: Job, seed: int, threads: int = 1, votes: Path = recorded.VOTES
) -> PreferenceLearner:
    """The learner of a job, at its start.

    Args:
      votes: the file of votes that the job "votes" learns from.
    """
    voted = job.rule == "votes"
    settings = replace(Settings(), iterations=job.iterations)
    generator, noise = seeding.split(seeding.make(seed), 2)

    def judge(copy: int, hidden: dict[str, Tensor]) -> Tensor:
        return judges.compare(judges.score(job.rule, hidden["qpos"]), ANNOTATOR, noise)

    def reward(batch: Trajectories) -> Tensor:
        return 60 * judges.moments(job.rule, batch.hidden["qpos"])

    asks = [0] * job.iterations
    if job.comparisons:
        asks = schedule(job.comparisons, job.iterations, job.first, job.half)
    learner = PreferenceLearner(
        hopper.Hoppers(threads=threads), judge, [asks], settings, generator,
        true_reward=reward, given=torch.tensor([not job.comparisons and not voted]),
        cast=recorded.cast(votes) if voted else None,
    )  # fmt: skip
    learner.noise = noise  # part of a checkpoint
    return learner


def measure(qpos: Tensor) -> dict[str, float]:
    """What a batch of episodes [N, T, 6] did: means over its episodes."""
    made = body.turns(qpos)[..., -1] - body.turns(qpos)[..., 0]
    return {
        "turns": made.mean().item(),
        "turns_in_the_air": judges.score("careful", qpos).mean().item(),
        "full_turn": body.full_turn(qpos).double().mean().item(),
        "flip_that_stands": body.flip_that_stands(qpos).double().mean().item(),
        "others_touch": body.others_touch(qpos).double().mean().item(),
    }


def evaluate(learner: PreferenceLearner, seed: int, episodes: int = 20) -> Tensor:
    """The mean action on gymnasium's own Hopper (RK4), [episodes, T, 6] qpos."""
    env = hopper.Hoppers(1, episodes, integrator="RK4")
    generator = seeding.make(10_000 + seed)
    batch = act(env, learner.policy, None, generator, greedy=True)
    return batch.hidden["qpos"][0]


def folder_of(out: Path, job: str, seed: int) -> Path:
    """Where a run is kept: a folder for each job's name and seed.

    >>> folder_of(Path("out"), "careful, all at first", 3).name
    'careful_all_at_first_seed3'
    """
    return out / f"{re.sub('[^a-z0-9]+', '_', job)}_seed{seed}"


def run(
    job: Job,
    seed: int,
    folder: Path,
    threads: int = 1,
    votes: Path = recorded.VOTES,
    tell: Callable[[dict], None] = lambda row: None,
    resumed: Callable[[int], None] = lambda iterations: None,
) -> dict:
    """Run a job to its end, or on from its last checkpoint; returns what is recorded.

    Args:
      folder: holds `run.safetensors` while it runs and `result.json` after.
      votes: see `make`.
      tell: called with the row of each iteration.
      resumed: called with the number of iterations that a checkpoint spares.
    """
    result = folder / "result.json"
    if result.exists():
        return json.loads(result.read_text(encoding="utf-8"))
    learner = make(job, seed, threads, votes)
    saved, rows, seconds = folder / "run.safetensors", [], 0.0
    if saved.exists():
        state = checkpoints.load(saved)
        restore(learner, state["learner"])
        rows, seconds = state["rows"], state["seconds"]
        resumed(learner.iteration)
    while learner.iteration < job.iterations:
        began = time.process_time()
        row, batch = learner.step()
        rows.append(row | measure(batch.hidden["qpos"][0]))
        seconds += time.process_time() - began
        tell(rows[-1])
        if learner.iteration % EVERY == 0:
            state = {"learner": snapshot(learner), "rows": rows, "seconds": seconds}
            checkpoints.save(saved, state)
    qpos = evaluate(learner, seed)
    ranked = body.turns(qpos)[:, -1].argsort()
    typical = qpos[ranked[len(ranked) // 2]]
    found = {
        "seed": seed, "date": date.today().isoformat(),
        "cpu_minutes": round(seconds / 60, 2),
        "steps": job.iterations * batch.logp.numel(),
        "curve": {k: [round(r.get(k, 0.0), 4) for r in rows] for k in rows[0]},
        "evaluation": {k: round(v, 4) for k, v in measure(qpos).items()},
        "turns": [round(x, 3) for x in body.turns(qpos)[:, -1].tolist()],
        "episode": [[round(x, 4) for x in q] for q in typical.tolist()],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    beside = result.with_suffix(".tmp")
    beside.write_text(json.dumps(found), encoding="utf-8")
    os.replace(beside, result)
    return found


def snapshot(learner: PreferenceLearner) -> dict:
    """All that a learner is, as nested dicts of tensors and numbers."""
    reward = learner.reward
    return {
        "policy": dict(learner.policy.state_dict()),
        "critic": dict(learner.critic.state_dict()),
        "reward": dict(reward.net.state_dict()),
        "optimizer": learner.optimizer.state_dict(),
        "reward_optimizer": reward.optimizer.state_dict(),
        "mean": reward.mean, "scale": reward.scale,
        "clips": learner.buffer.clips, "preference": learner.buffer.preference,
        "count": learner.buffer.count,
        "generator": learner.generator.get_state(), "noise": learner.noise.get_state(),
        "iteration": learner.iteration,
    }  # fmt: skip


def restore(learner: PreferenceLearner, state: dict) -> None:
    """Make a learner what `snapshot` found it to be."""
    reward = learner.reward
    learner.policy.load_state_dict(state["policy"])
    learner.critic.load_state_dict(state["critic"])
    reward.net.load_state_dict(state["reward"])
    learner.optimizer.load_state_dict(state["optimizer"])
    reward.optimizer.load_state_dict(state["reward_optimizer"])
    reward.mean, reward.scale = state["mean"], state["scale"]
    for name in ("clips", "preference", "count"):
        setattr(learner.buffer, name, state[name])
    learner.generator.set_state(state["generator"])
    learner.noise.set_state(state["noise"])
    learner.iteration = state["iteration"]
