"""The tools on notebooks of a few cells; two of the tests start a real kernel."""

import base64
import json
import os

import check_notebooks
import make_student
import nbformat
import pytest
import run_main
import run_notebooks
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAA"
    "AABJRU5ErkJggg=="
)


def code(source, *outputs, count=None, tags=()):
    cell = new_code_cell(source, outputs=list(outputs), execution_count=count)
    if tags:
        cell.metadata["tags"] = list(tags)
    return cell


def figure():
    return new_output("display_data", data={"image/png": PIXEL, "text/plain": "fig"})


def stdout(text):
    return new_output("stream", name="stdout", text=text)


# --- make_student

EXERCISE = """def kl(p, q):
    ### BEGIN SOLUTION
    ratio = p / q
    return (p * ratio.log()).sum()
    ### END SOLUTION

assert kl(half, half) == 0
### BEGIN HIDDEN TESTS
assert kl(half, third) > 0
### END HIDDEN TESTS"""


def test_a_student_gets_a_stub_and_the_check_but_not_the_solution():
    nb = new_notebook(cells=[code(EXERCISE, stdout("ok\n"), count=1)])
    assert make_student.student(nb) == 1
    assert nb.cells[0].source == (
        "def kl(p, q):\n    # YOUR CODE HERE\n    raise NotImplementedError\n\n"
        "assert kl(half, half) == 0"
    )
    assert nb.cells[0].outputs == [] and nb.cells[0].execution_count is None


def test_two_solutions_in_one_cell_are_two_stubs():
    one = "### BEGIN SOLUTION\na = 1\n### END SOLUTION\nprint(a)\n"
    nb = new_notebook(cells=[code(one + one)])
    assert make_student.student(nb) == 2
    assert nb.cells[0].source.count("print(a)") == 2
    assert "a = 1" not in nb.cells[0].source


def test_markdown_is_left_as_it_is():
    nb = new_notebook(cells=[new_markdown_cell("### BEGIN SOLUTION is a marker")])
    assert make_student.student(nb) == 0
    assert nb.cells[0].source == "### BEGIN SOLUTION is a marker"


@pytest.mark.parametrize("marker", ["### BEGIN SOLUTION", "### END HIDDEN TESTS"])
def test_a_marker_without_its_other_half_is_refused(marker):
    nb = new_notebook(cells=[code(f"a = 1\n{marker}\nb = 2")])
    with pytest.raises(ValueError, match="unbalanced marker"):
        make_student.student(nb)


def test_every_notebook_is_copied_and_none_is_changed(tmp_path):
    source = tmp_path / "notebooks"
    source.mkdir()
    nbformat.write(new_notebook(cells=[code(EXERCISE)]), source / "01_a.ipynb")
    before = (source / "01_a.ipynb").read_bytes()
    make_student.main(source, tmp_path / "build" / "student")
    copy = (tmp_path / "build" / "student" / "01_a.ipynb").read_text(encoding="utf-8")
    assert "ratio.log" not in copy and "NotImplementedError" in copy
    assert (source / "01_a.ipynb").read_bytes() == before


# --- check_notebooks


def good_notebook():
    cells = [
        new_markdown_cell("# Title"),
        code("print(2)", stdout("2\n"), count=1, tags=["nbval-check-output"]),
    ]
    return run_notebooks.normalise(new_notebook(cells=cells), "01")


def breaches(nb, tmp_path):
    run_notebooks.write(nb, tmp_path / "01_a.ipynb")
    return list(check_notebooks.breaches(tmp_path / "01_a.ipynb"))


def test_what_run_notebooks_writes_breaks_no_rule(tmp_path):
    assert breaches(good_notebook(), tmp_path) == []


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda c: c.update(source=""), "empty"),
        (lambda c: c.update(execution_count=None), "execution_count None, want 1"),
        (lambda c: c.update(execution_count=7), "execution_count 7, want 1"),
        (lambda c: c.update(source="print(2);"), "trailing ';'"),
        (lambda c: c.update(outputs=[]), "no stored output"),
        (lambda c: c.metadata.update(tags=[]), "no cell is tagged"),
        (lambda c: c.metadata.update(scrolled=True), "volatile metadata"),
        (lambda c: c.outputs[0].update(name="stderr"), "stderr"),
        (lambda c: c.outputs[0].update(text="/home/me/x.py"), "absolute path"),
        (lambda c: c.outputs[0].update(text="<f at 0x7f12abcdef>"), "memory address"),
        (
            lambda c: c.outputs.append(
                new_output("display_data", data={"image/svg+xml": "<svg/>"})
            ),
            "SVG",
        ),
        (
            lambda c: c.outputs.append(
                new_output("error", ename="KeyError", evalue="", traceback=[])
            ),
            "stored error KeyError",
        ),
    ],
)
def test_a_broken_rule_is_found(change, expected, tmp_path):
    nb = good_notebook()
    change(nb.cells[1])
    assert any(expected in breach for breach in breaches(nb, tmp_path))


def test_hand_edited_json_is_found(tmp_path):
    path = tmp_path / "01_a.ipynb"
    run_notebooks.write(good_notebook(), path)
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")), indent=2))
    assert any("as nbformat writes it" in b for b in check_notebooks.breaches(path))


def test_the_exit_code_tells_whether_a_rule_is_broken(tmp_path, capsys):
    run_notebooks.write(good_notebook(), tmp_path / "01_a.ipynb")
    assert check_notebooks.main([tmp_path / "01_a.ipynb"]) == 0
    bad = good_notebook()
    bad.cells[1].execution_count = None
    run_notebooks.write(bad, tmp_path / "02_b.ipynb")
    assert check_notebooks.main([tmp_path / "02_b.ipynb"]) == 1
    assert "02_b.ipynb: cell 1: execution_count None" in capsys.readouterr().out


# --- run_notebooks


def test_pieces_of_one_stream_become_one_output():
    outputs = [stdout("a\n"), stdout("b\n"), figure(), stdout("c\n")]
    merged = run_notebooks.merge_streams(outputs)
    assert [o.output_type for o in merged] == ["stream", "display_data", "stream"]
    assert merged[0].text == "a\nb\n"


def test_canonical_form_drops_what_differs_between_runs():
    cell = code("a = 1  \nb = 2", figure(), count=1, tags=["x"])
    cell.metadata["execution"] = {"iopub.status.busy": "2026-01-01"}
    nb = new_notebook(cells=[cell], metadata={"widgets": {}, "signature": "1"})
    nb = run_notebooks.normalise(nb, "07")
    assert set(nb.metadata) == {"kernelspec", "language_info"}
    assert dict(nb.cells[0].metadata) == {"tags": ["x"]}
    assert nb.cells[0].source == "a = 1\nb = 2" and nb.cells[0].id == "07-000"


def test_cell_ids_stay_until_a_cell_comes_between():
    cells = [code("a"), code("b")]
    nb = run_notebooks.normalise(new_notebook(cells=cells), "07")
    nb.cells.reverse()
    ids = [c.id for c in run_notebooks.normalise(nb, "07").cells]
    assert ids == ["07-001", "07-000"]
    nb.cells.insert(0, code("c"))  # would be called 07-000 as well
    ids = [c.id for c in run_notebooks.normalise(nb, "07").cells]
    assert ids == ["07-000", "07-001", "07-002"]


def test_running_a_notebook_twice_gives_the_same_bytes(tmp_path):
    path = tmp_path / "03_b.ipynb"
    cells = [new_markdown_cell("# T"), code("print(1 + 1)"), code("import rlhf_mini")]
    nbformat.write(new_notebook(cells=cells), path)
    run_notebooks.run(path)
    first = path.read_bytes()
    assert nbformat.read(path, as_version=4).cells[1].outputs[0].text == "2\n"
    run_notebooks.run(path)
    assert path.read_bytes() == first


def test_a_kernel_gets_two_threads_and_this_process_keeps_its_own(tmp_path):
    nb = new_notebook(cells=[code("import os; print(os.environ['OMP_NUM_THREADS'])")])
    here = os.environ["OMP_NUM_THREADS"]
    run_notebooks.execute(nb, tmp_path / "01_a.ipynb")
    assert nb.cells[0].outputs[0].text == "2\n"
    assert os.environ["OMP_NUM_THREADS"] == here


# --- run_main

SAMPLE = {
    "prompt": "This film",
    "before": "is a bore.",
    "after": "is\na  joy.",
    "before_gold": -1.234,
    "after_gold": 2.0,
}
SETUP = f"""import base64, json, os, pathlib
from IPython.display import Image, display
out = pathlib.Path(os.environ["RLHF_MINI_OUT"])
(out / "samples.json").write_text(json.dumps([{SAMPLE!r}]))
(out / "metrics.jsonl").write_text("{{}}")
display(Image(base64.b64decode("{PIXEL}"), format="png"))"""


@pytest.fixture
def main_job(tmp_path, monkeypatch):
    """Run the main job on the given cells; no data are fetched."""
    monkeypatch.setattr(run_main, "fetch_data", lambda: None)

    def run(*cells):
        path = tmp_path / "notebooks" / "11_tiny.ipynb"
        path.parent.mkdir()
        nbformat.write(new_notebook(cells=list(cells)), path)
        run_main.main(path, tmp_path / "out")
        return tmp_path / "out"

    return run


def test_the_main_job_leaves_copy_and_figures_and_prints_samples(main_job, capsys):
    out = main_job(new_markdown_cell("# T\n## Reward, then KL"), code(SETUP))
    copy = nbformat.read(out / "11_tiny.ipynb", as_version=4)
    assert copy.cells[1].execution_count == 1
    (png,) = (out / "figures").iterdir()
    assert png.name == "01_reward_then_kl.png"
    assert png.read_bytes() == base64.b64decode(PIXEL)
    printed, bar = capsys.readouterr()
    assert "before -1.23   is a bore." in printed
    assert "after  +2.00   is a joy." in printed
    assert "-1.23 before, +2.00 after" in printed
    assert "1/1" in bar and "Reward, then KL" in bar


def test_a_failing_notebook_says_where_and_keeps_what_ran(main_job, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        main_job(
            code("print('first')"),
            new_markdown_cell("## Train"),
            code("beta = 0\n1 / beta"),
            code("print('never')"),
        )
    message = capsys.readouterr().err
    assert "cell 2 failed, under the heading 'Train'" in message
    assert "1 / beta" in message and "ZeroDivisionError" in message
    assert "\x1b" not in message
    assert str(tmp_path / "out" / "11_tiny.ipynb") in str(stopped.value.code)
    copy = nbformat.read(tmp_path / "out" / "11_tiny.ipynb", as_version=4)
    assert copy.cells[0].outputs[0].text == "first\n"
    assert copy.cells[3].outputs == []


def test_a_notebook_that_leaves_no_samples_is_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}")
    with pytest.raises(SystemExit, match="left no samples.json"):
        run_main.report(tmp_path)


def test_without_the_notebook_the_main_job_says_so(tmp_path):
    with pytest.raises(SystemExit, match="no notebook at"):
        run_main.main(tmp_path / "11_none.ipynb", tmp_path / "out")


def test_figures_of_an_earlier_run_are_removed(tmp_path):
    (tmp_path / "09_old.png").write_bytes(b"")
    nb = new_notebook(cells=[code("a", figure(), figure(), count=1)])
    names = [path.name for path in run_main.extract_figures(nb, tmp_path)]
    assert names == ["01_figure.png", "02_figure.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
