"""Buttons with which a reader becomes the judge: A, B, tie, skip.

Each vote is on disk before the next pair shows, so a closed window loses none, and the
pairs that were voted on are not shown again.
"""

from collections.abc import Callable
from pathlib import Path

from IPython.display import display
from ipywidgets import Box, Button, HBox, Label, VBox, Widget

from rlhf_mini import votes
from rlhf_mini.checks import check_between

BUTTONS = {"A": "A is better", "B": "B is better", "tie": "as good", "skip": "skip"}


class VoteBox:
    """Shows one pair after the other and keeps what the reader says.

    Args:
      pairs: how many there are.
      draw: draw(number) is a widget that shows a pair, such as ipywidgets.Image.
      path: the file of votes, see `votes`; it may have some already.
      by: who votes.

    Raises:
      ValueError: there is no pair, or the file is not one of votes.
    """

    def __init__(
        self, pairs: int, draw: Callable[[int], Widget], path: Path, by="a reader"
    ):
        check_between(1, float("inf"), pairs=pairs)
        self.pairs, self.draw, self.path, self.by = pairs, draw, Path(path), by
        self.seen = {vote.pair for vote in votes.load(self.path)}
        self.label, self.place = Label(), Box()
        self.buttons = {key: Button(description=text) for key, text in BUTTONS.items()}
        for key, button in self.buttons.items():
            button.on_click(lambda _, key=key: self._say(key))
        self.widget = VBox([self.label, self.place, HBox([*self.buttons.values()])])
        self._next()

    def _say(self, vote: str) -> None:
        if self.pair is None:  # a click that came after the last pair
            return
        votes.append(self.path, votes.Vote(self.pair, vote, self.by))
        self.seen.add(self.pair)
        self._next()

    def _next(self) -> None:
        left = [n for n in range(self.pairs) if n not in self.seen]
        self.pair = left[0] if left else None
        for old in self.place.children:
            old.close()  # or every animation stays in memory
        self.place.children = (self.draw(self.pair),) if left else ()
        for button in self.buttons.values():
            button.disabled = not left
        done = self.pairs - len(left)
        self.label.value = f"{done} of {self.pairs} pairs voted on, in {self.path}"

    def show(self) -> None:
        """Display it; a page without a kernel shows words in its place."""
        view = self.widget._repr_mimebundle_()
        view["text/plain"] = "(with a running kernel: buttons to vote with)"
        display(view, raw=True)
