"""What every notebook kernel inherits from the test run, and what nbval compares."""

import os
from pathlib import Path

ROOT = Path(__file__).parent
# kernels start in notebooks/, so pytest's own path does not reach them
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
)
os.environ.setdefault("RLHF_MINI_PROFILE", "fast")
# MPLBACKEND=agg in a CI's environment would take every figure out of the notebooks
os.environ.pop("MPLBACKEND", None)
os.environ.update(
    PYTHONHASHSEED="0",
    OMP_NUM_THREADS="1",  # two workers on two cores
    TQDM_DISABLE="1",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TRANSFORMERS_VERBOSITY="error",
    # no debugger attaches here; without this its file check warns on stderr
    PYDEVD_DISABLE_FILE_VALIDATION="1",
)


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):  # nbval's collector; it has no option for it
        collector.skip_compare += ("stderr", "image/svg+xml", "text/html")
