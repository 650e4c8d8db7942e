"""Student copies of the notebooks: stubs for the solutions, no outputs.

    python tools/make_student.py                       # notebooks/ to build/student/
    python tools/make_student.py SOURCE DESTINATION

A solution stands between `### BEGIN SOLUTION` and `### END SOLUTION`; a check that
students should not see between `### BEGIN HIDDEN TESTS` and `### END HIDDEN TESTS`.
"""

import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
SOLUTION = re.compile(
    r"^([ \t]*)#+ BEGIN SOLUTION[^\n]*\n(?:.*\n)*?[ \t]*#+ END SOLUTION[^\n]*$", re.M
)
HIDDEN = re.compile(
    r"^[ \t]*#+ BEGIN HIDDEN TESTS[^\n]*\n(?:.*\n)*?"
    r"[ \t]*#+ END HIDDEN TESTS[^\n]*\n?",
    re.M,
)
STUB = r"\1# YOUR CODE HERE\n\1raise NotImplementedError"


def student(nb):
    """Change nb in place; return how many solutions were taken out."""
    found = 0
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        source, n = SOLUTION.subn(STUB, cell.source)
        cell.source = HIDDEN.sub("", source).rstrip("\n")
        if re.search(r"(BEGIN|END) (SOLUTION|HIDDEN TESTS)", cell.source):
            raise ValueError(f"unbalanced marker in cell {cell.id}:\n{cell.source}")
        found += n
        cell.outputs, cell.execution_count = [], None
    return found


def main(source, destination):
    destination.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.ipynb")):
        nb = nbformat.read(path, as_version=4)
        n = student(nb)
        nbformat.write(nb, destination / path.name)
        print(f"{path.name}: {n} solution(s) taken out")


if __name__ == "__main__":
    given = [Path(name) for name in sys.argv[1:]]
    main(*(given or [ROOT / "notebooks", ROOT / "build" / "student"]))
