"""A picture that sliders redraw, and that is a picture without a kernel too.

The first drawing is an ordinary output, which the page shows to every reader. Where a
kernel runs, moving a slider replaces it. Nothing is captured into a widget, so an
executed notebook keeps the picture and no dead controls.
"""

from collections.abc import Callable

import matplotlib.pyplot as plt
from IPython.display import display
from ipywidgets import IntSlider
from matplotlib.figure import Figure

from rlhf_mini.checks import check_between


def with_slider(
    draw: Callable[..., Figure],
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
    return with_sliders(draw, (name, value, low, high, step))[0]


def with_sliders(draw: Callable[..., Figure], *sliders: tuple) -> list[IntSlider]:
    """The same for several: draw takes their values in order.

    Args:
      sliders: (name, value, low, high) each, or (name, value, low, high, step), as
        `with_slider` takes them.

    Returns:
      The sliders, in order.

    Raises:
      ValueError: a value is outside its low … high; nothing is shown.
    """
    for _, value, low, high, *_ in sliders:
        check_between(low, high, value=value)

    def drawn():
        figure = draw(*(control.value for control in controls))
        plt.close(figure)
        return figure

    controls = [
        IntSlider(
            value=value, min=low, max=high, step=step[0] if step else 1,
            description=name, continuous_update=False,
        )
        for name, value, low, high, *step in sliders
    ]  # fmt: skip
    picture = display(drawn(), display_id=True)
    for control in controls:
        control.observe(lambda _: picture.update(drawn()), names="value")
        view = control._repr_mimebundle_()
        view["text/plain"] = (
            f"(with a running kernel: a slider for {control.description}, "
            f"{control.min} to {control.max})"
        )
        display(view, raw=True)
    return controls
