"""Figures: one style, one colour per method, and functions that only draw.

Decisions:
- A method has the same colour in every notebook. The palette is that of Okabe and
  Ito, which readers with any common form of colour blindness can tell apart; every
  method has a marker of its own too, so that a grey print can be read.
- A function takes data and `ax=None`, returns the Axes, and computes nothing but what
  it takes to draw (the mean and range of the seeds it is given).
- Three lines or fewer are labelled where they end; more get a legend.

No model, no torch: data may be tensors, arrays or lists.
"""

import matplotlib.pyplot as plt
import numpy as np

FULL, HALF = (6.0, 3.5), (3.5, 2.5)  # figure sizes in inches

COLORS = {
    "ref": "#7f7f7f",  # grey: the reference policy
    "optimum": "#000000",  # black, dashed: the exact answer
    "reinforce": "#56b4e9",
    "ppo": "#0072b2",
    "rloo": "#009e73",
    "grpo": "#cc79a7",
    "dpo": "#d55e00",
    "best_of_n": "#e69f00",
    "rejection": "#8c6d31",
    "sft": "#882255",
    "proxy": "#0072b2",
    "gold": "#e69f00",
    # ways past a plateau: notebook 01 (Tol's muted palette, for what is left of hues)
    "injected": "#332288",
    "natural": "#44aa99",
    "adam": "#999933",
    "curriculum": "#aa4499",
    # estimates of the KL: notebook 05 (the same palette, the last one darkened)
    "k1": "#117733",
    "k2": "#b8961e",
    "k3": "#cc6677",
    # variants that stand beside their parents: notebook 08
    "grpo_k1": "#6a3d9a",
    "iterative_dpo": "#ee3377",
    "ipo": "#661100",
}
MARKERS = {
    "ref": "h",
    "optimum": "",
    "reinforce": "v",
    "ppo": "o",
    "rloo": "^",
    "grpo": "D",
    "dpo": "s",
    "best_of_n": "P",
    "rejection": "X",
    "sft": "*",
    "proxy": "o",
    "gold": "s",
    "injected": "<",
    "natural": ">",
    "adam": "p",
    "curriculum": "d",
    "k1": "8",
    "k2": "H",
    "k3": "x",
    "grpo_k1": (5, 0, 180),
    "iterative_dpo": (6, 1, 0),
    "ipo": (4, 1, 45),
}
NAMES = {
    "ref": "π_ref",
    "optimum": "optimum π*",
    "reinforce": "REINFORCE",
    "ppo": "PPO",
    "rloo": "RLOO",
    "grpo": "GRPO",
    "dpo": "DPO",
    "best_of_n": "best-of-n",
    "rejection": "rejection sampling",
    "sft": "supervised",
    "proxy": "proxy reward",
    "gold": "gold reward",
    "injected": "injected, weighted",
    "natural": "natural gradient",
    "adam": "Adam",
    "curriculum": "curriculum",
    "k1": "k1",
    "k2": "k2",
    "k3": "k3",
    "grpo_k1": "GRPO, k1 in the reward",
    "iterative_dpo": "DPO, two rounds",
    "ipo": "IPO",
}
KL_LABEL = "KL(π‖π_ref) [nats]"


def use_style() -> None:
    """Set the look of every figure that follows; call once, in the setup cell."""
    known = list(COLORS)
    cycle = [COLORS[n] for n in known[known.index("reinforce") : known.index("proxy")]]
    plt.rcParams.update(
        {
            "figure.figsize": FULL,
            "figure.dpi": 110,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": plt.cycler(color=cycle),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "lines.linewidth": 1.8,
            "lines.markersize": 5,
            "legend.frameon": False,
            "font.size": 10,
        }
    )


def color(method: str) -> str:
    """The colour of a method.

    >>> color("ppo")
    '#0072b2'
    """
    return _known(COLORS, method)


def _known(table, method):
    if method not in table:
        raise ValueError(f"method: want one of {sorted(table)}, found {method!r}")
    return table[method]


def _axes(ax, xlabel, ylabel):
    ax = plt.subplots()[1] if ax is None else ax
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    return ax


def _array(name, x):
    x = np.asarray(x, dtype=float)
    if not np.isfinite(x).all():
        raise ValueError(f"{name}: found NaN or an infinite number")
    return x


def _same_length(**columns):
    columns = {name: _array(name, x) for name, x in columns.items()}
    if len({x.shape for x in columns.values()}) > 1 or columns[min(columns)].ndim != 1:
        found = ", ".join(f"{name} {list(x.shape)}" for name, x in columns.items())
        raise ValueError(f"want one axis of one length, found {found}")
    return columns.values()


def _label_lines(ax, lines):
    """Name each line: beside its end for three or fewer, in a legend for more.

    Args:
      lines: (text, colour, y of the last point) of each line.
    """
    if len(lines) > 3:
        ax.legend()
        return
    lines = sorted(lines, key=lambda line: line[2])
    low, high = ax.get_ylim()
    places = []
    for _, _, y in lines:  # labels keep their distance, lines need not
        places.append(max([y] + [p + 0.08 * (high - low) for p in places[-1:]]))
    shift = sum(p - y for p, (_, _, y) in zip(places, lines, strict=True)) / len(lines)
    for place, (text, colour, _) in zip(places, lines, strict=True):
        ax.annotate(
            text,
            (1.01, place - shift),
            xycoords=("axes fraction", "data"),
            color=colour,
            va="center",
            annotation_clip=False,
        )


def frontier(
    curve_kl, curve_reward, methods=None, ax=None, ylabel="expected reward", ref=None
):
    """What reward each KL buys: the exact frontier, and where the methods stand.

    Args:
      curve_kl, curve_reward: the exact curve, [n] each, in order of KL.
      methods: {method: (kl, reward)}, each [m]: one point per β, or per seed.
      ref: reward of π_ref, drawn as a grey point at KL 0; None for no point.
    """
    ax = _axes(ax, KL_LABEL, ylabel)
    x, y = _same_length(curve_kl=curve_kl, curve_reward=curve_reward)
    ax.plot(x, y, "--", color=COLORS["optimum"], label=NAMES["optimum"], zorder=1)
    if ref is not None:
        style = {"color": COLORS["ref"], "label": NAMES["ref"], "linestyle": "none"}
        ax.plot([0], [ref], MARKERS["ref"], **style)
    for method, (kl, reward) in (methods or {}).items():
        kl, reward = _same_length(kl=np.atleast_1d(kl), reward=np.atleast_1d(reward))
        style = {"color": color(method), "label": NAMES[method], "linestyle": "none"}
        # by name: a marker may be a tuple, which plot would take for data
        ax.plot(kl, reward, marker=MARKERS[method], **style)
    ax.legend(loc="lower right")  # points of several methods lie too close for labels
    return ax


def methods_by_kl(points, ways=None, ax=None, ylabel="gold [rating points]"):
    """What each method bought, and with how much KL, where no exact curve is known.

    Args:
      points: {method: (kl, reward, error)}, each [m]: one point per run; `error` is
        half a confidence interval, or None.
      ways: {method: (kl, reward)}, [n] each: a thin line, such as the way there.
    """
    ax = _axes(ax, KL_LABEL, ylabel)
    for method, (kl, reward) in (ways or {}).items():
        kl, reward = _same_length(kl=kl, reward=reward)
        ax.plot(kl, reward, color=color(method), linewidth=0.8, alpha=0.5)
    for method, (kl, reward, error) in points.items():
        kl, reward = _same_length(kl=np.atleast_1d(kl), reward=np.atleast_1d(reward))
        error = None if error is None else np.atleast_1d(_array("error", error))
        joined = MARKERS[method] + ("-" if method == "best_of_n" else "")
        ax.errorbar(
            kl, reward, error, fmt=joined, color=color(method), label=NAMES[method],
            capsize=2, markersize=7, linewidth=1,
        )  # fmt: skip
    ax.legend()
    return ax


def learning_curves(
    curves, steps=None, ax=None, ylabel="expected reward", xlabel="step", exact=None
):
    """Mean over seeds as a line, lowest to highest seed as a band.

    Args:
      curves: {method: values [seeds, steps]}; one row is drawn without a band.
      steps: where the values were taken, [steps]; 1, 2, … if None.
      exact: the right answer, a number drawn as a dashed black line.
    """
    ax = _axes(ax, xlabel, ylabel)
    ends, seeds = [], set()
    for method, values in curves.items():
        values = np.atleast_2d(_array(method, values))
        x = (
            np.arange(1, values.shape[1] + 1)
            if steps is None
            else _array("steps", steps)
        )
        if x.shape != values.shape[1:]:
            found = f"{method} {list(values.shape)}, steps {list(x.shape)}"
            raise ValueError(f"want one value per step, found {found}")
        mean = values.mean(0)
        ax.plot(x, mean, color=color(method), label=NAMES[method])
        if len(values) > 1:
            low, high = values.min(0), values.max(0)
            ax.fill_between(x, low, high, color=color(method), alpha=0.2, linewidth=0)
        seeds.add(len(values))
        ends.append((NAMES[method], color(method), mean[-1]))
    if exact is not None:
        style = {"color": COLORS["optimum"], "label": NAMES["optimum"]}
        ax.axhline(exact, linestyle="--", zorder=1, **style)
        if len(ends) <= 3:
            ax.annotate(
                "exact optimum",
                (0.01, exact),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                va="bottom",
            )
    _label_lines(ax, ends)
    if max(seeds) > 1:
        count = " or ".join(str(n) for n in sorted(seeds))
        ax.set_title(
            f"line: mean of {count} seeds; band: lowest to highest",
            fontsize=8, loc="left", color=COLORS["ref"],
        )  # fmt: skip
    return ax


def calibration(predicted, observed, error=None, ax=None, method="ppo"):
    """How often what was predicted with probability p came true, beside the diagonal.

    Args:
      predicted, observed: mean prediction and share that came true per bin, [bins].
      error: half a confidence interval of `observed`, [bins], or None.
    """
    ax = _axes(ax, "predicted probability", "observed share")
    x, y = _same_length(predicted=predicted, observed=observed)
    error = None if error is None else _array("error", error)
    ax.plot([0, 1], [0, 1], "--", color=COLORS["optimum"], zorder=1)
    ax.errorbar(
        x, y, yerr=error, fmt=MARKERS[method] + "-", color=color(method), capsize=2
    )
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    ax.annotate("calibrated", (0.5, 0.5), xytext=(8, -8), va="top",
                textcoords="offset points")  # fmt: skip
    return ax


def choice_curve(gap, observed, error=None, curve=None, ax=None, xlabel="score gap"):
    """How often a judge prefers the better one, by how much better it is.

    Args:
      gap, observed: mean gap and share that chose the better one per bin, [bins].
      error: half a confidence interval of `observed`, [bins], or None.
      curve: (gap, probability) of a fitted or exact curve, or None.
    """
    ax = _axes(ax, xlabel, "P(the better one is chosen)")
    x, y = _same_length(gap=gap, observed=observed)
    error = None if error is None else _array("error", error)
    if curve is not None:
        curve_x, curve_y = _same_length(gap=curve[0], probability=curve[1])
        ax.plot(curve_x, curve_y, "--", color=COLORS["optimum"], label="Bradley-Terry")
    ax.errorbar(
        x, y, yerr=error, fmt="o", color=COLORS["ppo"], capsize=2, label="observed"
    )
    ax.axhline(0.5, color=COLORS["ref"], linewidth=0.8, zorder=0)
    ax.set_ylim(0.45, 1.02)
    ax.legend(loc=(0.62, 0.22))
    return ax


def reward_vs_sqrt_kl(kl, proxy, gold, ax=None, ylabel="reward"):
    """What the reward model says and what is true, as the policy moves away.

    The horizontal axis is √KL, in which Gao, Schulman & Hilton (2022,
    arXiv 2210.10760) state their laws of over-optimisation.

    Args:
      kl: KL(π‖π_ref) in nats, [n], none below 0.
      proxy, gold: reward of the model trained on, and of the judge, [n].
    """
    ax = _axes(ax, "√KL(π‖π_ref) [√nats]", ylabel)
    kl, proxy, gold = _same_length(kl=kl, proxy=proxy, gold=gold)
    if (kl < 0).any():
        raise ValueError(f"kl: want numbers ≥ 0, found {kl.min()}")
    x, ends = np.sqrt(kl), []
    for method, y, line in (("proxy", proxy, "--"), ("gold", gold, "-")):
        style = {"color": color(method), "label": NAMES[method]}
        ax.plot(x, y, line, marker=MARKERS[method], **style)
        ends.append((NAMES[method], color(method), y[-1]))
    _label_lines(ax, ends)
    return ax


def simplex_paths(paths, target, ax=None, corners=("a", "b", "c"), arrows=True):
    """Paths of laws over three actions, in the triangle of all such laws.

    A law stands at the corner of an action if it always plays that one, and its height
    over a side is the probability of the action opposite.

    Args:
      paths: {method: probabilities [N, 3] or [paths, N, 3]}, in order of time; a
        hollow dot marks the start, a full marker the end.
      target: probabilities of π_ref, [3].
      corners: names of the three actions: left, right, top.
      arrows: whether each path has an arrow half-way along its length.
    """
    height = 3**0.5 / 2
    ax = _axes(ax, f"← more {corners[0]}    more {corners[1]} →", f"π({corners[2]})")

    def place(name, law):
        law = _array(name, law)
        if law.shape[-1:] != (3,) or (abs(law.sum(-1) - 1) > 1e-6).any():
            found = f"shape {list(law.shape)}"
            raise ValueError(f"{name}: want probabilities [..., 3], found {found}")
        return law[..., 1] + law[..., 2] / 2, law[..., 2] * height

    ax.plot([0, 1, 0.5, 0], [0, 0, height, 0], color="black", linewidth=0.8)
    for method, laws in paths.items():
        x, y = (np.atleast_2d(c) for c in place(method, laws))
        style = {"color": color(method), "zorder": 3}
        for i, (u, v) in enumerate(zip(x, y, strict=True)):
            ax.plot(u, v, label=NAMES[method] if i == 0 else None, **style)
            ax.plot(u[0], v[0], "o", mfc="white", **style)
            ax.plot(u[-1], v[-1], MARKERS[method], clip_on=False, **style)
            walked = np.hypot(np.diff(u), np.diff(v)).cumsum()
            if arrows and walked.max(initial=0) > 0.02:
                half = int(np.searchsorted(walked, walked[-1] / 2))
                ends = {"xy": (u[half + 1], v[half + 1]), "xytext": (u[half], v[half])}
                pointed = {"arrowstyle": "-|>", "color": color(method)}
                ax.annotate("", **ends, arrowprops=pointed)
    x, y = place("target", target)
    ax.plot(x, y, "*", color="black", markersize=12, label=NAMES["ref"], zorder=4)
    for name, at, shift, side in zip(
        corners,
        [(0, 0), (1, 0), (0.5, height)],
        [(-9, -4), (9, -4), (7, 0)],
        ["right", "left", "left"],
        strict=True,
    ):
        ax.annotate(name, at, xytext=shift, textcoords="offset points", ha=side)
    ax.set(aspect="equal", xticks=[], yticks=[0, height / 2, height])
    ax.set(xlim=(-0.16, 1.12), ylim=(-0.07, height + 0.05))
    ax.spines["bottom"].set_visible(False)
    ax.set_yticklabels(["0", "½", "1"])
    ax.grid(False)
    ax.legend(loc="upper left")
    return ax
