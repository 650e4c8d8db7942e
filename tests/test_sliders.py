"""sliders.py with a display that only takes notes."""

import matplotlib.pyplot as plt
import pytest

from rlhf_mini import sliders
from rlhf_mini.sliders import with_slider, with_sliders


@pytest.fixture
def shown(monkeypatch):
    """Everything displayed, in order; updates of a display are marked."""
    notes = []

    class Handle:
        def update(self, what):
            notes.append(("update", what))

    def display(what, display_id=False, raw=False):
        notes.append(("raw" if raw else "picture", what))
        return Handle() if display_id else None

    monkeypatch.setattr(sliders, "display", display)
    return notes


def test_the_picture_comes_first_and_needs_no_click(shown):
    with_slider(lambda k: f"drawn at {k}", "K", 32, 2, 96)
    assert shown[0] == ("picture", "drawn at 32")


def test_moving_the_slider_redraws_that_picture(shown):
    slider = with_slider(lambda k: f"drawn at {k}", "K", 32, 2, 96, step=2)
    slider.value = 4
    assert shown[2:] == [("update", "drawn at 4")]


def test_the_slider_stays_where_it_can_go(shown):
    slider = with_slider(lambda k: k, "K", 32, 2, 96)
    slider.value = 1000
    assert shown[-1] == ("update", 96)


def test_without_a_kernel_words_stand_in_its_place(shown):
    with_slider(lambda k: k, "K", 32, 2, 96)
    kind, bundle = shown[1]
    assert kind == "raw" and any("widget-view" in mime for mime in bundle)
    assert bundle["text/plain"] == "(with a running kernel: a slider for K, 2 to 96)"


def test_a_figure_is_drawn_once_per_position_and_left_closed(shown):
    calls = []

    def draw(k):
        calls.append(k)
        return plt.figure()

    slider = with_slider(draw, "K", 3, 1, 9)
    slider.value = 5
    assert calls == [3, 5] and not plt.get_fignums()


@pytest.mark.parametrize("value", [1, 97])
def test_a_first_value_out_of_range_is_named(shown, value):
    with pytest.raises(ValueError, match=f"value: want 2 ≤ value ≤ 96, found {value}"):
        with_slider(lambda k: k, "K", value, 2, 96)


def test_several_sliders_redraw_one_picture_from_all_their_values(shown):
    n, beta = with_sliders(
        lambda *at: str(at), ("n", 4, 2, 64), ("100 β", 50, 10, 90, 5)
    )
    assert [kind for kind, _ in shown] == ["picture", "raw", "raw"]
    assert shown[0] == ("picture", "(4, 50)")
    beta.value = 75
    n.value = 8
    assert shown[3:] == [("update", "(4, 75)"), ("update", "(8, 75)")]
    assert (n.step, beta.step) == (1, 5)


def test_the_slider_out_of_range_among_several_is_found(shown):
    with pytest.raises(ValueError, match="value: want 10 ≤ value ≤ 90, found 9"):
        with_sliders(lambda *at: at, ("n", 4, 2, 64), ("100 β", 9, 10, 90))
    assert not shown
