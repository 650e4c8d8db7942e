"""python -m rlhf_mini.gpt2: the whole run from the command line.

Leaves in --out: policy/ and reward_model/ (folders that transformers loads),
preferences.jsonl, metrics.jsonl, evaluation.json, samples.json.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from .. import seeding
from . import checkpoints
from .comparisons import Comparisons, accuracy, predict
from .evaluation import best_of_n, evaluate, samples
from .models import TokenScorer, freeze
from .pipeline import (
    make_comparisons,
    make_reward_model,
    run_dpo,
    run_ppo,
    run_rloo,
)
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
        loaded = checkpoints.load(file)
        data = Comparisons(**{k: x.to(world.device) for k, x in loaded.items()})
    else:
        data = make_comparisons(world, s.comparisons)
        checkpoints.save(file, vars(data))
        data.write_jsonl(folder / "preferences.jsonl", world.tokenizer)
        write_json(stamp, wanted)
    done = folder / "reward_model" / "done"
    if not done.exists():
        make_reward_model(world, data).save(folder / "reward_model")
        world.tokenizer.save_pretrained(folder / "reward_model")
        done.touch()
    # also what was just made is read back: where weights lie in memory moves the last
    # digit of a score, and a resumed run is to be the same run
    scorer = TokenScorer.load(folder / "reward_model", world.tokenizer)
    return data, freeze(scorer.to(world.device))


def agreement(world: World, reward_model: TokenScorer) -> dict:
    """How often the reward model names the annotator's choice, on fresh comparisons.

    Measured once per data folder: all the runs that share one have the same answer.
    """
    file = world.settings.data_folder / "reward_model" / "agreement.json"
    if not file.exists():
        fresh = make_comparisons(world, 1024, seed=world.settings.seed + 20_000)
        right, error = accuracy(predict(reward_model, fresh), fresh)
        row = {"accuracy": right, "ci": 1.96 * error, "comparisons": len(fresh)}
        write_json(file, row)
    return json.loads(file.read_text(encoding="utf-8"))


def report(world: World, policy, reward_model) -> dict:
    """Evaluate reference and policy on held-out prompts; write and print both."""
    out, board = world.settings.out_folder, world.board(reward_model)
    results, rollouts = {}, {}
    for name, who in (("reference", world.reference), ("policy", policy)):
        results[name], rollouts[name] = evaluate(
            who, world.reference, world.eval_prompts, board, seeding.make(10_000)
        )
    rows = samples(rollouts["reference"], rollouts["policy"], board, 20)
    write_json(out / "samples.json", rows)
    write_json(out / "evaluation.json", results)
    print(f"\n{'held-out prompts':24}{'reference':>12}{'policy':>12}")
    for key in results["policy"]:
        if not key.endswith("_ci"):
            print(f"{key:24}" + "".join(f"{r[key]:12.3f}" for r in results.values()))
    return results


def check_resume(settings: Settings) -> None:
    """Raise if --resume would go on with other settings than the killed run had.

    Raises:
      ValueError: the first setting that differs, with both values.
    """
    file = settings.out_folder / "settings.json"
    if not (settings.resume and file.exists()):
        return
    for name, found in json.loads(file.read_text(encoding="utf-8")).items():
        wanted = getattr(settings, name, None)
        if name not in ("resume", "out", "data", "device") and found != wanted:
            raise ValueError(
                f"{name}: the run in {settings.out} has {found!r}, this one wants "
                f"{wanted!r}; leave out --resume, or name another --out folder"
            )


def write_json(path: Path, x) -> None:
    part = path.with_name(path.name + ".part")  # a kill leaves no half file
    part.write_text(json.dumps(x, indent=1, ensure_ascii=False), encoding="utf-8")
    part.replace(path)


def main(settings: Settings) -> None:
    out = settings.out_folder
    out.mkdir(parents=True, exist_ok=True)
    check_resume(settings)
    write_json(out / "settings.json", asdict(settings))
    world = build_world(settings)
    data, reward_model = prepare(world)
    found = agreement(world, reward_model)
    print(
        f"reward model: agrees with the annotator on {found['accuracy']:.3f} ± "
        f"{found['ci']:.3f} of {found['comparisons']} fresh comparisons"
    )
    if settings.method == "best-of-n":
        curve = best_of_n(
            world.reference, world.eval_prompts, world.board(reward_model),
            settings.best_of, seeding.make(10_001),
        )  # fmt: skip
        write_json(out / "best_of_n.json", curve)
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
