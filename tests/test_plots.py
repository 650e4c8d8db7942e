"""What is drawn is what was given, in the method's colour, with both axes named."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from rlhf_mini import plots

matplotlib.use("agg")

KL, REWARD = [0.0, 0.5, 1.0], [0.0, 0.6, 0.8]
LAWS = torch.tensor([[0.2, 0.5, 0.3], [0.5, 0.25, 0.25]])
SEEDS = torch.tensor([[0.0, 1.0, 2.0], [2.0, 3.0, 7.0]])
DRAWINGS = {
    "frontier": lambda ax: plots.frontier(KL, REWARD, {"ppo": (KL, REWARD)}, ax, ref=0),
    "methods_by_kl": lambda ax: plots.methods_by_kl({"ppo": (KL, REWARD, None)}, ax=ax),
    "learning_curves": lambda ax: plots.learning_curves({"ppo": SEEDS}, ax=ax, exact=8),
    "calibration": lambda ax: plots.calibration(KL, REWARD, error=[0.1] * 3, ax=ax),
    "choice_curve": lambda ax: plots.choice_curve(KL, REWARD, ax=ax),
    "reward_vs_sqrt_kl": lambda ax: plots.reward_vs_sqrt_kl(KL, REWARD, REWARD, ax),
    "simplex_paths": lambda ax: plots.simplex_paths({"k1": LAWS}, LAWS[1], ax),
}


@pytest.fixture(autouse=True)
def clean_figures():
    with plt.rc_context():
        plots.use_style()
        yield
    plt.close("all")


def line(ax, label):
    (found,) = [x for x in ax.get_lines() if x.get_label() == label]
    return found


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_is_drawn_into_the_axes_given(name):
    _, ax = plt.subplots()
    assert DRAWINGS[name](ax) is ax
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize("name", DRAWINGS)
def test_without_axes_a_figure_of_the_house_size_is_made(name):
    ax = DRAWINGS[name](None)
    assert tuple(ax.figure.get_size_inches()) == plots.FULL


@pytest.mark.parametrize("name", DRAWINGS)
def test_both_axes_are_named(name):
    ax = DRAWINGS[name](None)
    assert ax.get_xlabel() and ax.get_ylabel()


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_can_be_rendered(name, tmp_path):
    DRAWINGS[name](None).figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 2_000


def test_the_direction_of_the_kl_is_on_the_axis():
    assert plots.frontier(KL, REWARD).get_xlabel() == "KL(π‖π_ref) [nats]"


# --- colours


def test_every_method_has_a_colour_a_marker_and_a_name():
    assert set(plots.COLORS) == set(plots.MARKERS) == set(plots.NAMES)


def test_reference_is_grey_and_optimum_black():
    red, green, blue = matplotlib.colors.to_rgb(plots.color("ref"))
    assert red == green == blue
    assert plots.color("optimum") == "#000000"


def test_no_two_methods_share_a_colour_or_a_marker():
    """proxy and gold are rewards, not methods: they stand in figures of their own."""
    methods = set(plots.COLORS) - {"proxy", "gold"}
    assert len({plots.COLORS[m] for m in methods}) == len(methods)
    assert len({plots.MARKERS[m] for m in methods}) == len(methods)


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="method: want one of .* found 'pppo'"):
        plots.color("pppo")


# --- what is drawn


def test_the_exact_frontier_is_black_and_dashed():
    exact = line(plots.frontier(KL, REWARD), "optimum π*")
    assert exact.get_color() == "#000000" and exact.get_linestyle() == "--"
    np.testing.assert_array_equal(exact.get_xydata(), np.c_[KL, REWARD])


def test_points_of_a_method_stand_where_they_were_measured():
    ax = plots.frontier(KL, REWARD, {"dpo": ([0.7], [0.5])})
    assert line(ax, "DPO").get_xydata().tolist() == [[0.7, 0.5]]
    assert to_hex(line(ax, "DPO").get_color()) == plots.color("dpo")


def test_one_number_per_method_is_enough():
    ax = plots.frontier(KL, REWARD, {"ppo": (0.7, 0.5)})
    assert line(ax, "PPO").get_xydata().tolist() == [[0.7, 0.5]]


def test_a_method_has_its_points_its_intervals_and_its_way_there():
    ax = plots.methods_by_kl(
        {"ppo": (KL, REWARD, [0.1, 0.2, 0.3])}, {"ppo": ([0, 2], [0, 1])}
    )
    way, points = ax.get_lines()[0], ax.containers[0]
    assert way.get_ydata().tolist() == [0, 1]
    assert points[0].get_xdata().tolist() == KL
    (bars,) = points[2]
    spans = [s[:, 1].tolist() for s in bars.get_segments()]
    np.testing.assert_allclose(spans, [[-0.1, 0.1], [0.4, 0.8], [0.5, 1.1]])


def test_a_learning_curve_is_the_mean_over_seeds():
    ax = plots.learning_curves({"ppo": SEEDS}, steps=[10, 20, 30])
    drawn = line(ax, "PPO").get_xydata().tolist()
    assert drawn == [[10, 1.0], [20, 2.0], [30, 4.5]]


def test_the_band_reaches_from_the_lowest_seed_to_the_highest():
    ax = plots.learning_curves({"ppo": SEEDS})
    (band,) = ax.collections
    vertices = band.get_paths()[0].vertices
    assert {(x, y) for x, y in vertices if x == 3} == {(3, 2), (3, 7)}
    assert "2 seeds; band: lowest to highest" in ax.get_title(loc="left")


def test_one_seed_has_no_band_and_claims_none():
    ax = plots.learning_curves({"ppo": SEEDS[:1]})
    assert not ax.collections and not ax.get_title(loc="left")


def test_three_lines_are_labelled_where_they_end():
    curves = dict.fromkeys(("ppo", "rloo", "dpo"), SEEDS)
    ax = plots.learning_curves(curves)
    assert ax.get_legend() is None
    assert {"PPO", "RLOO", "DPO"} <= {t.get_text() for t in ax.texts}


def test_four_lines_get_a_legend():
    curves = dict.fromkeys(("ppo", "rloo", "dpo", "grpo"), SEEDS)
    assert plots.learning_curves(curves).get_legend() is not None


def test_labels_of_lines_that_meet_do_not_lie_on_each_other():
    ax = plots.learning_curves(dict.fromkeys(("ppo", "rloo", "dpo"), SEEDS))
    heights = sorted(t.xy[1] for t in ax.texts)
    low, high = ax.get_ylim()
    assert min(np.diff(heights)) > 0.07 * (high - low)


def test_calibration_is_held_against_the_diagonal():
    ax = plots.calibration([0.2, 0.8], [0.3, 0.7])
    assert [[0, 0], [1, 1]] in [x.get_xydata().tolist() for x in ax.get_lines()]


def test_over_optimisation_is_drawn_over_the_root_of_the_kl():
    ax = plots.reward_vs_sqrt_kl([0, 4, 9], [0, 1, 2], [0, 1, 0.5])
    assert line(ax, "proxy reward").get_xdata().tolist() == [0, 2, 3]
    assert line(ax, "gold reward").get_ydata().tolist() == [0, 1, 0.5]


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: plots.frontier(KL, REWARD[:2]), r"curve_kl \[3\], curve_reward \[2\]"),
        (lambda: plots.frontier(KL, [0, np.nan, 1]), "curve_reward: found NaN"),
        (lambda: plots.learning_curves({"ppo": SEEDS}, [1]), r"ppo .*, steps \[1\]"),
        (lambda: plots.reward_vs_sqrt_kl([-1], [0], [0]), "kl: want numbers ≥ 0"),
        (lambda: plots.methods_by_kl({"ppo": (KL, [1], None)}), r"kl \[3\], reward"),
    ],
)
def test_data_that_do_not_fit_are_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


# --- the triangle of laws over three actions


def test_a_law_that_always_plays_one_action_stands_in_its_corner():
    ax = plots.simplex_paths({"k3": torch.eye(3)}, LAWS[0])
    x, y = line(ax, "k3").get_data()
    np.testing.assert_allclose(x, [0, 1, 0.5])
    np.testing.assert_allclose(y, [0, 0, 3**0.5 / 2])


def test_a_law_stands_at_the_mean_of_the_corners_weighted_by_it():
    ax = plots.simplex_paths({"k1": LAWS}, LAWS[1])
    corners = np.array([[0, 0], [1, 0], [0.5, 3**0.5 / 2]])
    np.testing.assert_allclose(line(ax, "k1").get_xydata(), LAWS.numpy() @ corners)
    star = line(ax, "π_ref").get_xydata()
    np.testing.assert_allclose(star, LAWS[1:].numpy() @ corners, rtol=1e-6)


def test_many_paths_of_one_method_have_one_entry_in_the_legend():
    ax = plots.simplex_paths({"k1": LAWS[None].repeat(3, 1, 1)}, LAWS[1])
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts == ["k1", "π_ref"]


def test_a_law_that_never_moved_is_a_path_without_an_arrow():
    ax = plots.simplex_paths({"k1": LAWS[:1]}, LAWS[1])
    assert {t.get_text() for t in ax.texts} == {"a", "b", "c"}
    moved = plots.simplex_paths({"k1": LAWS}, LAWS[1])
    assert len(moved.texts) == 4


@pytest.mark.parametrize("law", [[0.5, 0.5], [0.5, 0.2, 0.2], [float("nan"), 0.5, 0.5]])
def test_what_is_no_law_over_three_actions_is_named(law):
    with pytest.raises(ValueError, match="target"):
        plots.simplex_paths({"k1": LAWS}, law)
    with pytest.raises(ValueError, match="k1"):
        plots.simplex_paths({"k1": [law, law]}, LAWS[1])
