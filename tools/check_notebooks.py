"""Rules for committed notebooks; prints every breach and exits with 1 if any.

python tools/check_notebooks.py        # all of notebooks/, or the files given
"""

import re
import sys
from pathlib import Path

import nbformat

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
PATHS = re.compile(
    r"(?<![\w.])/(?:home|root|tmp|Users|work|mnt|opt|usr/local/lib)/\S+"
    r"|[A-Z]:\\\\?Users"
)
ADDRESS = re.compile(r"at 0x[0-9a-f]{6,}")
VOLATILE = {"execution", "ExecuteTime", "collapsed", "scrolled", "papermill"}
MAX_BYTES = 1_000_000


def text_of(output):
    if output.output_type == "stream":
        return output.text
    if output.output_type == "error":
        return "\n".join(output.traceback)
    return "\n".join(str(v) for k, v in output.data.items() if k.startswith("text/"))


def breaches(path):
    """Every rule that the notebook breaks, as text."""
    raw = path.read_bytes().decode("utf-8")
    nb = nbformat.reads(raw, as_version=4)
    try:
        nbformat.validate(nb)
    except nbformat.ValidationError as error:
        yield f"not valid nbformat: {error.message}"
    if (nb.nbformat, nb.nbformat_minor) != (4, 5):
        yield f"nbformat {nb.nbformat}.{nb.nbformat_minor}, want 4.5"
    # a checkout on Windows may have put its own line ends
    if raw.replace("\r\n", "\n") != nbformat.writes(nb) + "\n":
        yield "not as nbformat writes it: run `make notebooks`"
    if len(raw) > MAX_BYTES:
        yield f"{len(raw)} bytes, over {MAX_BYTES}"
    if nb.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "kernelspec.name is not python3"
    beyond = set(nb.metadata) - {"kernelspec", "language_info"}
    if beyond or set(nb.metadata.get("language_info", ())) - {"name"}:
        yield "notebook metadata beyond kernelspec and language_info.name"
    checked, expected = 0, 1
    for i, cell in enumerate(nb.cells):
        if set(cell.metadata) & VOLATILE:
            yield f"cell {i}: volatile metadata {sorted(cell.metadata)}"
        if not cell.source.strip():
            yield f"cell {i}: empty"
        if cell.cell_type != "code":
            continue
        tags = cell.metadata.get("tags", [])
        if "nbval-skip" not in tags and cell.execution_count != expected:
            # nbval never compares a cell that has not been run
            yield f"cell {i}: execution_count {cell.execution_count}, want {expected}"
        expected += 1
        if "nbval-check-output" in tags:
            checked += 1
            if not cell.outputs:
                yield f"cell {i}: checked but has no stored output"
            if re.search(r";\s*$", cell.source):
                yield f"cell {i}: nbval does not honour a trailing ';'"
        for output in cell.outputs:
            yield from (f"cell {i}: {b}" for b in output_breaches(output, tags))
    if not checked:
        yield "no cell is tagged nbval-check-output"


def output_breaches(output, tags):
    if output.output_type == "error" and "raises-exception" not in tags:
        yield f"stored error {output.ename}"
    if output.get("name") == "stderr":
        yield f"stderr: {output.text.strip()[:80]!r}"
    if "image/svg+xml" in output.get("data", {}):
        yield "SVG output (carries a date; use PNG)"
    if any("widget-view" in kind for kind in output.get("data", {})):
        yield "stored widget view (random model id)"
    for what, pattern in (("absolute path", PATHS), ("memory address", ADDRESS)):
        if found := pattern.search(text_of(output)):
            yield f"{what} in output: {found[0][:60]}"


def main(paths):
    bad = [(path, breach) for path in paths for breach in breaches(path)]
    for path, breach in bad:
        print(f"{path.name}: {breach}")
    print(f"{len(paths)} notebooks, {len(bad)} breaches")
    return 1 if bad else 0


if __name__ == "__main__":
    given = [Path(name) for name in sys.argv[1:]]
    sys.exit(main(given or sorted(FOLDER.glob("*.ipynb"))))
