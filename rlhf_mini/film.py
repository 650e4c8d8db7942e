"""The Hopper drawn from its positions: film strips and animations, without OpenGL.

All functions take `qpos`, [T, 6] (see `control.body`), and draw four thick lines and a
head, so that a recorded run looks the same on every machine.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from torch import Tensor

from rlhf_mini.checks import check_between, check_ndim
from rlhf_mini.control import body
from rlhf_mini.plots import color

LIMBS = ("ppo", "reinforce", "rloo", "best_of_n")  # colours: torso, thigh, leg, foot
WIDE = (7.0, 6.5, 5.0, 7.0)  # line widths at a scale of 1, in points
DPI = 60  # of animations: small files
FRAME = 40  # milliseconds of an animation's frame


def _limbs(qpos: Tensor, shift: float, scale: float):
    """Lines (x, z, colour, width) and the head's place, for one moment [6]."""
    ends = body.segments(qpos.double())
    lines = [
        (ends[i, :, 0] + shift, ends[i, :, 1], color(LIMBS[i]), WIDE[i] * scale)
        for i in range(4)
    ]
    return lines, (ends[0, 0, 0] + shift, ends[0, 0, 1])


def strip(
    qpos: Tensor, moments: Sequence[int], ax: Axes | None = None, gap: float = 1.1
) -> Axes:
    """Some moments of an episode side by side, in order of time.

    Each pose is moved so that the torso stands `gap` metres right of the one before:
    the horizontal axis is time, not place. Heights are true.

    Args:
      qpos: [T, 6].
      moments: which of the T to draw.

    Raises:
      ValueError: qpos has not two axes, or a moment is outside 0 … T − 1.
    """
    check_ndim(2, qpos=qpos)
    check_between(0, len(qpos) - 1, first=min(moments), last=max(moments))
    if ax is None:
        ax = plt.subplots(figsize=(0.75 * len(moments) + 0.6, 1.9))[1]
    for place, t in enumerate(moments):
        shift = place * gap - float(qpos[t, 0])
        lines, head = _limbs(qpos[t], shift, scale=0.6)
        for x, z, colour, width in lines:
            ax.plot(x, z, color=colour, linewidth=width, solid_capstyle="round")
        ax.plot(*head, "o", color="black", markersize=5)
    ax.axhline(0, color=color("ref"), linewidth=1)
    seconds = [f"{body.DECISION * (t + 1):.2f}" for t in moments]
    ax.set_xticks(np.arange(len(moments)) * gap, seconds, fontsize=8)
    ax.set(xlabel="time [s]", ylabel="height [m]", aspect="equal", ylim=(-0.15, 2.4))
    ax.set_xlim(-0.7, (len(moments) - 1) * gap + 0.7)
    ax.grid(False)
    return ax


def animation(clips: Sequence[Tensor], titles: Sequence[str], every: int = 2) -> bytes:
    """Clips side by side as an animated GIF that repeats.

    Args:
      clips: each [T, 6], of one length.
      titles: one for each clip.
      every: moments from frame to frame.

    Returns:
      The file's bytes: write them, or show them with IPython.display.Image.

    Raises:
      ValueError: no clip, clips of several lengths, or another number of titles.
    """
    lengths = {len(c) for c in clips}
    if len(lengths) != 1 or len(titles) != len(clips):
        found = f"lengths {sorted(lengths)}, {len(titles)} titles"
        raise ValueError(f"clips: want ≥ 1 of one length and a title each, {found}")
    with plt.rc_context({"figure.constrained_layout.use": False}):
        fig, axes = plt.subplots(
            1, len(clips), figsize=(2.6 * len(clips), 2.6), dpi=DPI, squeeze=False
        )
    fig.subplots_adjust(0.02, 0.02, 0.98, 0.88)
    artists = []
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set(ylim=(-0.2, 2.3), aspect="equal", xticks=[], yticks=[])
        ax.axhspan(-0.3, 0, color=color("ref"), alpha=0.5, linewidth=0)
        ax.set_title(title, fontsize=11)
        lines = [
            ax.plot([], [], color=color(c), solid_capstyle="round")[0] for c in LIMBS
        ]
        (dot,) = ax.plot([], [], "o", color="black", markersize=5)
        ticks = ax.plot([], [], "|", color="black", markersize=5)[0]
        artists.append((ax, lines, dot, ticks))

    def draw(t):
        for (ax, lines, dot, ticks), clip in zip(artists, clips, strict=True):
            limbs, head = _limbs(clip[t], 0.0, scale=0.8)
            for line, (x, z, _, width) in zip(lines, limbs, strict=True):
                line.set_data(x, z)
                line.set_linewidth(width)
            dot.set_data([head[0]], [head[1]])
            x = float(clip[t, 0])
            ax.set_xlim(x - 1.25, x + 1.25)  # the camera follows, the ticks pass
            ticks.set_data(np.arange(round(x) - 3, round(x) + 4), np.full(7, -0.08))

    with tempfile.TemporaryDirectory() as folder:  # the writer knows names only
        place = Path(folder) / "film.gif"
        writer = PillowWriter(fps=1000 // FRAME)
        with writer.saving(fig, str(place), dpi=DPI):
            for t in range(0, lengths.pop(), every):
                draw(t)
                writer.grab_frame()
        plt.close(fig)
        return place.read_bytes()


def moments_of_a_turn(qpos: Tensor, count: int = 9) -> list[int]:
    """Moments in equal parts of rotation from the start to the first full turn.

    Of an episode without one: in equal parts of time.

    Raises:
      ValueError: count < 2.
    """
    check_between(2, len(qpos), count=count)
    turned = body.turns(qpos).cummax(0).values
    if turned[-1] < 1:
        return torch.linspace(0, len(qpos) - 1, count).round().long().tolist()
    goals = torch.linspace(0.0, 1.0, count, dtype=turned.dtype)
    found = torch.searchsorted(turned, goals).clamp(max=len(qpos) - 1)
    return found.tolist()
