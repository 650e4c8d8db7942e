"""python -m rlhf_mini.gpt2: the whole run from the command line.

Leaves in --out: policy/ and reward_model/ (folders that transformers loads),
preferences.jsonl, metrics.jsonl, evaluation.json, samples.json.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from .. import seeding
from ..rollouts import Rollout, collect
from . import checkpoints
from .comparisons import Comparisons, accuracy, predict
from .evaluation import best_of_n_curve, evaluate
from .models import TokenScorer, freeze
from .pipeline import (
    make_comparisons,
    make_reward_model,
    run_dpo,
    run_ppo,
    run_rloo,
)
from .reviews import decode
from .settings import Settings, parse
from .world import World, build_world

# what the comparisons and the reward model depend on
DATA_SETTINGS = (
    "model", "seed", "prompt_length", "new_tokens", "comparisons", "answers", "flip",
    "rm_lr", "rm_batch", "rm_epochs",
)  # fmt: skip


def prepare(world: World) -> tuple[Comparisons, TokenScorer]:
    """Comparisons and reward model: read from the data folder, or made and left there.

    Raises:
      ValueError: the folder holds those of other settings; the first that differs is
        named.
    """
    s, folder = world.settings, world.settings.data_folder
    wanted = {k: getattr(s, k) for k in DATA_SETTINGS}
    folder.mkdir(parents=True, exist_ok=True)
    stamp, file = folder / "data_settings.json", folder / "comparisons.safetensors"
    if stamp.exists():
        found = json.loads(stamp.read_text())
        for name, want in wanted.items():
            if found.get(name) != want:
                raise ValueError(
                    f"{name}: {folder} was made with {found.get(name)!r}, this run "
                    f"wants {want!r}; name another --data or --out folder"
                )
    if stamp.exists() and file.exists():
        data = Comparisons(**checkpoints.load(file))
    else:
        data = make_comparisons(world, s.comparisons)
        checkpoints.save(file, vars(data))
        data.write_jsonl(folder / "preferences.jsonl", world.tokenizer)
        stamp.write_text(json.dumps(wanted, indent=1))
    done = folder / "reward_model" / "done"
    if done.exists():
        scorer = TokenScorer.load(folder / "reward_model", world.tokenizer)
        return data, freeze(scorer.to(world.device))
    scorer = make_reward_model(world, data)
    scorer.save(folder / "reward_model")
    world.tokenizer.save_pretrained(folder / "reward_model")
    done.touch()
    return data, scorer


def report(world: World, policy, reward_model) -> dict:
    """Evaluate reference and policy on held-out prompts; write and print both."""
    out, board = world.settings.out_folder, world.board(reward_model)
    results, rollouts = {}, {}
    for name, who in (("reference", world.reference), ("policy", policy)):
        results[name], rollouts[name] = evaluate(
            who, world.reference, world.eval_prompts, board, seeding.make(10_000)
        )
    write_samples(world, rollouts["reference"], rollouts["policy"], out)
    (out / "evaluation.json").write_text(json.dumps(results, indent=1))
    print(f"\n{'held-out prompts':24}{'reference':>12}{'policy':>12}")
    for key in results["policy"]:
        if not key.endswith("_ci"):
            print(f"{key:24}" + "".join(f"{r[key]:12.3f}" for r in results.values()))
    return results


def write_samples(world: World, before: Rollout, after: Rollout, out: Path, n=20):
    """samples.json: answers to the same prompts before and after, with gold scores."""
    gold = world.gold()
    columns = [
        world.tokenizer.batch_decode(before.prompts[:n], skip_special_tokens=True),
        decode(before[:n], world.tokenizer, answers_only=True),
        decode(after[:n], world.tokenizer, answers_only=True),
        gold(before[:n]).tolist(),
        gold(after[:n]).tolist(),
    ]
    names = ("prompt", "before", "after", "before_gold", "after_gold")
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    text = json.dumps(rows, indent=1, ensure_ascii=False)
    (out / "samples.json").write_text(text, encoding="utf-8")


def best_of_n(world: World, reward_model: TokenScorer) -> list[dict]:
    """The best-of-n curve of the reference on held-out prompts, best-of-1 included."""
    n, board = world.settings.best_of, world.board(reward_model)
    prompts = world.eval_prompts.repeat_interleave(n, dim=0)
    generator = seeding.make(10_001)
    rollout = collect(world.reference, prompts, generator, batch_size=512)
    rows = torch.arange(len(rollout)).split(512)
    columns: dict[str, list[Tensor]] = {}
    for i in rows:
        for name, x in board(rollout[i]).items():
            columns.setdefault(name, []).append(x)
    sizes = [2**i for i in range(n.bit_length()) if 2**i <= n]
    joined = {k: torch.cat(v) for k, v in columns.items()}
    return best_of_n_curve(joined, n, sizes)


def main(settings: Settings) -> None:
    out = settings.out_folder
    out.mkdir(parents=True, exist_ok=True)
    (out / "settings.json").write_text(json.dumps(asdict(settings), indent=1))
    world = build_world(settings)
    data, reward_model = prepare(world)
    fresh = make_comparisons(world, 1024, seed=settings.seed + 20_000)
    right, error = accuracy(predict(reward_model, fresh), fresh)
    print(
        f"reward model: agrees with the annotator on {right:.3f} ± {1.96 * error:.3f} "
        f"of {len(fresh)} fresh comparisons"
    )
    if settings.method == "best-of-n":
        curve = best_of_n(world, reward_model)
        (out / "best_of_n.json").write_text(json.dumps(curve, indent=1))
        for row in curve:
            print("  ".join(f"{k} {row[k]:.3f}" for k in row if not k.endswith("_ci")))
        return
    if settings.method == "dpo":
        policy, _ = run_dpo(world, data, folder=out)
    else:
        run = {"ppo": run_ppo, "rloo": run_rloo}[settings.method]
        policy, _ = run(world, reward_model, folder=out)
    policy.model.save_pretrained(out / "policy")
    world.tokenizer.save_pretrained(out / "policy")
    report(world, policy, reward_model)
    print(f"\nleft in {out}: policy/, metrics.jsonl, evaluation.json, samples.json")


if __name__ == "__main__":
    try:
        main(parse())
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
