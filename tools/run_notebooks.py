"""Execute notebooks in place and write them in one canonical form.

    python tools/run_notebooks.py                                # all of them
    python tools/run_notebooks.py notebooks/11_gpt2_rlhf.ipynb

A re-run with the same numbers is no diff: no time stamps, no widget state, one cell
id per place, one output per stream.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import conftest  # noqa: E402,F401  (the environment of the tests, but for the threads)

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python"}
KERNEL["name"] = "python3"
CELL_KEEP = {"tags", "nbgrader", "editable", "deletable", "jupyter"}


def execute(nb, path, env=None, **hooks):
    """Run all cells in a new kernel, in the notebook's own folder.

    Two threads, where the tests take one: here one notebook runs at a time.
    """
    NotebookClient(
        nb,
        timeout=3600,  # seconds per cell
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        # else the kernel warns that it talks over TCP, as every kernel does
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
        **hooks,
    ).execute(env={**os.environ, "OMP_NUM_THREADS": "2", **(env or {})})


def merge_streams(outputs):
    """Pieces of one stream become one output: how they were cut depends on timing."""
    merged = []
    for output in outputs:
        last = merged[-1] if merged else None
        if (
            last is not None
            and output.output_type == last.output_type == "stream"
            and output.name == last.name
        ):
            last.text += output.text
        else:
            merged.append(output)
    return merged


def normalise(nb, stem):
    """The canonical form; `stem` is the notebook's number, which begins its ids."""
    nb.metadata = nbformat.from_dict(
        {"kernelspec": dict(KERNEL), "language_info": {"name": "python"}}
    )
    nb.nbformat, nb.nbformat_minor = 4, 5
    for i, cell in enumerate(nb.cells):
        known = str(cell.get("id", "")).startswith(f"{stem}-")
        cell.id = cell.id if known else f"{stem}-{i:03d}"
        cell.metadata = nbformat.from_dict(
            {k: v for k, v in cell.metadata.items() if k in CELL_KEEP}
        )
        if cell.cell_type != "code":
            continue
        cell.source = "\n".join(line.rstrip() for line in cell.source.split("\n"))
        cell.outputs = merge_streams(cell.outputs)
        for output in cell.outputs:
            if "data" in output:
                # a widget's model id is random, and a committed widget is dead
                output.data.pop("application/vnd.jupyter.widget-view+json", None)
                output.metadata = nbformat.from_dict({})
    ids = [cell.id for cell in nb.cells]
    if len(set(ids)) != len(ids):  # a cell was inserted: number all again
        for i, cell in enumerate(nb.cells):
            cell.id = f"{stem}-{i:03d}"
    return nb


def write(nb, path):
    """As nbformat writes it, with the same line ends on every system."""
    text = nbformat.writes(nb) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")


def run(path):
    nb = nbformat.read(path, as_version=4)
    execute(nb, path)
    write(normalise(nb, path.stem.split("_")[0]), path)


if __name__ == "__main__":
    given = [Path(name).resolve() for name in sys.argv[1:]]
    for path in given or sorted((ROOT / "notebooks").glob("*.ipynb")):
        run(path)
        print("ran", path.name)
