"""A picture that a slider redraws, and that is a picture without a kernel too.

The first drawing is an ordinary output, which the page shows to every reader. Where a
kernel runs, moving the slider replaces it. Nothing is captured into a widget, so an
executed notebook keeps the picture and no dead controls.
"""

from collections.abc import Callable

import matplotlib.pyplot as plt
from IPython.display import display
from ipywidgets import IntSlider
from matplotlib.figure import Figure

from rlhf_mini.checks import check_between


def with_slider(
    draw: Callable[[int], Figure],
    name: str,
    value: int,
    low: int,
    high: int,
    step: int = 1,
) -> IntSlider:
    """Show draw(value), and below it a slider that shows draw of what it is moved to.

    Args:
      draw: returns a figure, which is closed here so that it is not shown twice.
      name: what the slider is called.
      value: where it stands at first; the picture of readers without a kernel.
      low, high, step: where it can go.

    Returns:
      The slider.

    Raises:
      ValueError: value is outside low … high.
    """
    check_between(low, high, value=value)

    def drawn(at):
        figure = draw(at)
        plt.close(figure)
        return figure

    picture = display(drawn(value), display_id=True)
    slider = IntSlider(
        value=value, min=low, max=high, step=step, description=name,
        continuous_update=False,
    )  # fmt: skip
    slider.observe(lambda change: picture.update(drawn(change["new"])), names="value")
    view = slider._repr_mimebundle_()
    view["text/plain"] = (
        f"(with a running kernel: a slider for {name}, {low} to {high})"
    )
    display(view, raw=True)
    return slider
