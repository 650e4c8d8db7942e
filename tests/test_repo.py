"""The repository as a reader finds it: notebooks, imports, links, sizes, commands."""

import ast
import doctest
import hashlib
import importlib
import re
import sys
import tomllib
from pathlib import Path

import check_notebooks
import nbformat
import pytest

from rlhf_mini import datasets, pairs

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "rlhf_mini"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODULES = sorted(p.relative_to(ROOT) for p in PACKAGE.rglob("*.py"))
TEXTS = sorted(ROOT.glob("*.md")) + sorted((ROOT / "data").rglob("*.md"))

# A module imports nothing from a higher floor.
# One name a line, so that two branches that add a module merge.
FLOORS = {
    1: """
    checks
    masking
    logprobs
    kl
    kl_flows
    advantages
    losses
    elo
    count_tables
    maximum_likelihood
    preferences
    information
    exact
    exact_trees
    tree_gradients
    frontier
    penalties
    baselines
    bandit_flows
    group_expectations
    k3_fixed_points
    surrogates
    overoptimization
    """,
    2: """
    seeding
    datasets
    pairs
    bandits
    token_world
    annotators
    policies
    rollouts
    human_pairs
    votes
    """,
    3: """
    training
    offline_training
    gpt2
    control
    reward_models
    """,
    4: "plots tables sliders grading labelling film",
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names.split()}
PURE = {"torch", "numpy", "scipy"}  # all that floor 1 may import beside the standard


def imports(path):
    """Top-level names that a file imports, own ones as rlhf_mini.<module>."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield ".".join(parts[:2]) if parts[0] == "rlhf_mini" else parts[0]


def floor_of(path):
    return FLOOR.get(path.relative_to(PACKAGE).with_suffix("").parts[0])


# --- modules


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_module_imports(module):
    importlib.import_module(".".join(module.with_suffix("").parts))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_module_imports_no_higher_floor(module):
    if module.name == "__init__.py":
        assert not list(imports(ROOT / module)), "keep __init__.py empty"
        return
    floor = floor_of(ROOT / module)
    assert floor, f"{module}: give it a floor in this test"
    own = {
        n.split(".")[1] for n in imports(ROOT / module) if n.startswith("rlhf_mini.")
    }
    assert {n: FLOOR[n] for n in own if FLOOR[n] > floor} == {}


@pytest.mark.parametrize("module", FLOORS[1].split())
def test_floor_one_needs_tensors_and_nothing_else(module):
    names = set(imports(PACKAGE / f"{module}.py"))
    outside = {n for n in names if not n.startswith("rlhf_mini.")}
    assert outside - PURE - set(sys.stdlib_module_names) == set()


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_only_the_language_model_rung_needs_transformers(module):
    if "gpt2" not in module.parts:
        assert "transformers" not in set(imports(ROOT / module))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_module_has_a_test_file(module):
    if module.name.startswith("__"):
        return
    names = {f"test_{module.stem}.py"}
    if "gpt2" in module.parts:
        names |= {"test_gpt2.py", f"test_gpt2_{module.stem}.py"}
    found = {p.name for p in (ROOT / "tests").rglob("test_*.py")}
    assert names & found, f"want one of {sorted(names)}"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_module_says_what_it_is(module):
    text = (ROOT / module).read_text(encoding="utf-8")
    assert module.name == "__init__.py" or ast.get_docstring(ast.parse(text))


def test_every_imported_package_is_required():
    """What the library and the tools import stands in requirements.txt by name."""
    required = requirements()
    known = {"sklearn": "scikit-learn", "IPython": "ipykernel"}
    own = {p.stem for p in (ROOT / "tools").glob("*.py")} | {"conftest", "rlhf_mini"}
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "tools").glob("*.py")]:
        outside = {n.split(".")[0] for n in imports(path)} - own
        for name in outside - set(sys.stdlib_module_names):
            assert known.get(name, name) in required, f"{path.name} imports {name}"


def requirements():
    """{package: version range} of requirements.txt."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    lines = re.findall(r"^([a-z][\w-]*)(\S*)", text, re.M)
    return dict(lines)


def test_torch_and_the_tools_that_judge_are_pinned_exactly():
    for name in ("torch", "ruff", "nbval"):
        assert requirements()[name].startswith("=="), name


def test_every_other_requirement_has_an_upper_bound():
    for name, versions in requirements().items():
        assert "<" in versions or "==" in versions, name


# --- notebooks


def cells(path, kind):
    nb = nbformat.read(path, as_version=4)
    return [c for c in nb.cells if c.cell_type == kind]


notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


@notebook
def test_notebook_is_in_canonical_form(path):
    assert list(check_notebooks.breaches(path)) == []


@notebook
def test_notebook_name_has_a_number_and_no_spaces(path):
    assert re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem)


@notebook
def test_notebook_opens_with_title_bold_question_and_runtime(path):
    nb = nbformat.read(path, as_version=4)
    head = "\n".join(c.source for c in nb.cells[:3] if c.cell_type == "markdown")
    assert nb.cells[0].source.startswith("# ")
    assert re.search(r"\*\*[^*]+\?\*\*", head), "want one question in bold"
    assert runtime(path), "want '*Runtime: N s on 2 CPU cores, …*'"


def runtime(path):
    """Seconds that the notebook says it takes, or None."""
    text = "\n".join(c.source for c in cells(path, "markdown")[:3])
    found = re.search(r"Runtime: (?:about )?(\d+) s on 2 CPU cores", text)
    return int(found[1]) if found else None


@notebook
def test_notebook_draws_from_seeded_generators(path):
    code = "\n".join(c.source for c in cells(path, "code"))
    assert re.search(r"seeding\.make\(|seed ?= ?\d", code)


@notebook
def test_notebook_asserts_every_claim(path):
    """Each bold 'Claim N.' is followed by an assert before the next claim."""
    text = ""
    for cell in nbformat.read(path, as_version=4).cells:
        source = cell.source
        if cell.cell_type == "code":
            source = re.sub(
                r"^[ \t]*(assert\b|claim\()", "<ASSERT>", source, flags=re.M
            )
        text += source + "\n"
    pieces = re.split(r"^(?:\*\*|#+ )Claim (\d+)", text, flags=re.M)[1:]
    claims = {}
    for number, rest in zip(pieces[::2], pieces[1::2], strict=True):
        claims[number] = claims.get(number, "") + rest  # a cell may name it again
    assert claims, "want at least one claim"
    assert [n for n, rest in claims.items() if "<ASSERT>" not in rest] == []


@notebook
def test_notebook_labels_the_axes_of_every_figure(path):
    """A cell that shows a figure draws it with plots.* or names both axes itself."""
    for cell in cells(path, "code"):
        shown = any("image/png" in o.get("data", {}) for o in cell.outputs)
        by_hand = re.search(r"xlabel", cell.source) and re.search("ylabel", cell.source)
        assert not shown or "plots." in cell.source or by_hand, cell.id


@notebook
def test_notebook_reads_every_figure_in_words(path):
    nb = nbformat.read(path, as_version=4)
    for cell, after in zip(nb.cells, [*nb.cells[1:], None], strict=True):
        shown = any("image/png" in o.get("data", {}) for o in cell.get("outputs", []))
        assert not shown or (after and after.cell_type == "markdown"), cell.id


@notebook
def test_notebook_calls_every_function_it_defines(path):
    code = "\n".join(c.source for c in cells(path, "code"))
    code = re.sub(r"^[ \t]*[%!].*$", "", code, flags=re.M)
    tree = ast.parse(code)
    defined = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    used |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    assert defined - used == set()


@notebook
def test_notebook_has_at_least_as_many_cells_of_prose_as_of_code(path):
    assert len(cells(path, "markdown")) >= len(cells(path, "code"))


# --- links, sizes


def links(text):
    """Relative targets of Markdown links and images, without their #fragments."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    found = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text)
    targets = (a or b for a, b in found)
    return {t.split("#")[0] for t in targets if not re.match(r"[a-z]+:|#", t)} - {""}


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_of_texts_resolve(path):
    # links to notebooks are checked against the table, below
    targets = {t for t in links(path.read_text("utf-8")) if not t.endswith(".ipynb")}
    assert {t for t in targets if not (path.parent / t).exists()} == set()


@notebook
def test_relative_links_of_notebooks_resolve(path):
    text = "\n".join(c.source for c in cells(path, "markdown"))
    assert {t for t in links(text) if not (path.parent / t).exists()} == set()


def test_the_data_folder_stays_small():
    size = sum(p.stat().st_size for p in (ROOT / "data").rglob("*") if p.is_file())
    assert size < 40e6


DATA = [p for p in (ROOT / "data").rglob("*") if p.is_file()]


@pytest.mark.parametrize(
    "path",
    [p for p in DATA if p.suffix not in (".md", ".png")],
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)
def test_every_data_file_is_on_record_with_its_hash(path):
    record = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    name = path.relative_to(ROOT / "data").as_posix()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert re.search(rf"`{re.escape(name)}`.*`{digest}`", record), f"{name} {digest}"


def test_the_packages_that_texts_come_from_are_on_record():
    record = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for package in (datasets.REVIEWS, datasets.RATINGS, pairs.GAMES):
        assert package.filename in record and package.sha256 in record


# --- README and Makefile

README = (ROOT / "README.md").read_text(encoding="utf-8")


def readme_tree():
    """Paths that the tree of the README lists."""
    block = re.search(r"^## The files\n.*?```\n(.*?)```", README, re.S | re.M)[1]
    folders = []
    for line in block.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        folders = folders[: len(indent) // 2] + [name.rstrip("/")]
        yield "/".join(folders)


def test_every_file_of_the_tree_exists():
    missing = [p for p in readme_tree() if not (ROOT / p).exists()]
    assert missing == []


def test_every_file_is_in_the_tree():
    listed = set(readme_tree())
    files = [p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py"]
    files += [*(ROOT / "tools").glob("*.py"), *ROOT.glob("*.md"), *ROOT.glob("*.toml")]
    files += [p for p in (ROOT / "data").iterdir() if p.name != ".DS_Store"]
    names = {p.relative_to(ROOT).as_posix() for p in files}
    assert names - listed == set()


def table_rows():
    """(notebook file, minutes) of each row of the table of notebooks."""
    row = r"^\| \[[^]]+\]\(notebooks/([^)]+)\) \|.*\| ([\d.]+) \|$"
    return {name: float(minutes) for name, minutes in re.findall(row, README, re.M)}


@pytest.mark.skipif(not NOTEBOOKS, reason="no notebook yet")
def test_the_table_has_every_notebook_and_no_other():
    assert set(table_rows()) == {p.name for p in NOTEBOOKS}


@notebook
def test_the_table_tells_the_minutes_that_the_notebook_tells(path):
    assert runtime(path) <= 60 * table_rows()[path.name]


def metric_names(path):
    """String keys of the dicts that a file makes, and of those it writes into."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        keys = node.keys if isinstance(node, ast.Dict) else []
        written = isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)
        for key in [*keys, *([node.slice] if written else [])]:
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value


@pytest.mark.parametrize(
    "name", ["training.py", "offline_training.py", "gpt2/evaluation.py"]
)
def test_the_glossary_has_every_metric(name):
    glossary = README.split("## The metrics")[1].split("\n## ")[0]
    no_metrics = {"lr", "initial_lr"}  # of the optimizer; the rest, of samples.json
    no_metrics |= {"prompt", "before", "after", "before_gold", "after_gold"}
    names = set(metric_names(PACKAGE / name)) - no_metrics
    assert {n for n in names if f"`{n}`" not in glossary} == set()


def recipe(target):
    """The commands of a make target, as a reader without make would type them."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    body = re.search(rf"^{target}: setup[^\n]*\n((?:\t[^\n]+\n)+)", makefile, re.M)[1]
    return [c.strip().replace("$(BIN)", ".venv/bin") for c in body.splitlines()]


@pytest.mark.parametrize("target", ["run", "test"])
def test_the_readme_gives_the_commands_behind_make(target):
    for command in recipe(target):
        assert command in README
        windows = command.replace(".venv/bin", ".venv/Scripts").replace("/", "\\")
        assert windows in README


def test_windows_ci_runs_the_commands_of_make_test():
    workflow = (ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8")
    for command in recipe("test"):
        windows = command.replace(".venv/bin", ".venv/Scripts").replace("/", "\\")
        assert f"run: {windows}\n" in workflow


def test_the_example_of_the_readme_is_true():
    failed, tried = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert tried and not failed


def test_ci_calls_make_test():
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_oldest_python_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    oldest = project["project"]["requires-python"].removeprefix(">=")
    workflow = (ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8")
    assert f'python: ["{oldest}",' in workflow
    assert f"Python {oldest}" in README
    assert f"Python {oldest}" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_torch_that_ci_installs_is_the_torch_required():
    pin = "torch" + requirements()["torch"]
    workflow = (ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8")
    assert f"{pin} --index-url" in workflow and f"{pin} --index-url" in README
