"""A picture of the cut for the terminal: a bar per group, of the units that stay, those that go,
and those of which neither is sure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shapray.driver.plan import Plan
from shapray.pruning.doubt import all_misplaced
from shapray.storage import names
from shapray.storage.certainty import UNSURE

BLOCKS, LETTERS = "█▒░", "#?."  # kept, unsure, removed; told apart without colour
_STYLES = ("green", "yellow", "dim")
_NAME, _NUMBERS = 28, 38  # characters
_LINES_AROUND = 8  # of a terminal, for the heading, the legend and the prompt
MOST_LINES = 40  # where there is no terminal


@dataclass(frozen=True)
class Share:
    """Of a group's units, or of several groups'.

    Attributes:
        kept, removed: as the cut has it.
        unsure_kept, unsure_removed: those of them that may belong on the other side; None where
            that is not known.
    """

    name: str
    kept: int
    removed: int
    unsure_kept: int | None = None
    unsure_removed: int | None = None

    @property
    def unsure(self) -> int | None:
        if self.unsure_kept is None or self.unsure_removed is None:
            return None
        return self.unsure_kept + self.unsure_removed

    @property
    def counts(self) -> tuple[int, int, int]:
        """Surely kept, unsure, surely removed."""
        sure = self.kept - (self.unsure_kept or 0), self.removed - (self.unsure_removed or 0)
        return sure[0], self.unsure or 0, sure[1]

    @staticmethod
    def of(name: str, removed: Sequence[int], chances: np.ndarray) -> "Share":
        """chances: (n_units,) to belong on the other side, NaN where they are not known."""
        goes = np.zeros(len(chances), bool)
        goes[list(removed)] = True
        kept, gone = int((~goes).sum()), int(goes.sum())
        if np.isnan(chances).any():
            return Share(name, kept, gone)
        unsure = chances >= UNSURE
        return Share(name, kept, gone, int((unsure & ~goes).sum()), int((unsure & goes).sum()))


def show_cut(console: Console, plan: Plan) -> None:
    """The picture of a finished run's own cut."""
    store, chooser = plan.setup.store, plan.chooser
    found = (store.read_json(f"{names.CUTS}/{names.PLAN}") or {}).get("groups", {})
    removed = {group: of["removed"] for group, of in found.items()}
    costs = {group: chooser.sizes.macs_of_a_unit(group, chooser.gone) for group in chooser.n_units}
    scores = store.read_table(names.SCORES)
    chances = all_misplaced(scores, chooser.prune, costs, removed, chooser.blocks)
    show(console, [Share.of(group, removed.get(group, ()), of) for group, of in chances.items()])


def show(console: Console, groups: Sequence[Share]) -> None:
    """A line per group; of neighbours together, if there are more than the terminal has lines."""
    marks = BLOCKS if console.is_terminal and _can_be_shown(BLOCKS, console.encoding) else LETTERS
    lines = max(MOST_LINES // 4, console.height - _LINES_AROUND)
    shares = joined(groups, lines if console.is_terminal else MOST_LINES)
    longest = min(_NAME, max(len(share.name) for share in shares))
    width = min(40, max(10, console.width - longest - _NUMBERS))
    table = Table(box=box.SIMPLE)
    table.add_column("group", style="bold", overflow="fold", max_width=_NAME)
    table.add_column("units")
    for title in ("kept", "removed", "unsure"):
        table.add_column(title, justify="right")
    for share in shares:
        table.add_row(
            share.name,
            Text.assemble(*zip(_pieces(share.counts, width, marks), _STYLES)),
            str(share.kept),
            str(share.removed),
            _in_words(share),
        )
    console.print(table)
    kept, unsure, removed = tuple(marks)
    console.print(
        f"{kept} kept  {unsure} unsure  {removed} removed; unsure: a chance of {UNSURE:.0%} or "
        "more that the unit belongs on the other side of the cut, by the total errors of the scores"
    )


def _in_words(share: Share) -> str:
    """How many are unsure, for the table."""
    if share.removed == 0:  # which ones go is not in question
        return "-"
    return "not known" if share.unsure is None else str(share.unsure)


def joined(groups: Sequence[Share], most: int) -> list[Share]:
    """The same in `most` lines or fewer: as many neighbours each as that takes."""
    each = math.ceil(len(groups) / most)
    parts = [groups[first : first + each] for first in range(0, len(groups), each)]
    return [part[0] if len(part) == 1 else _together(part) for part in parts]


def _together(part: Sequence[Share]) -> Share:
    def total(numbers: Sequence[int | None]) -> int | None:
        known = [number for number in numbers if number is not None]
        return sum(known) if len(known) == len(numbers) else None

    return Share(
        f"{part[0].name} and {len(part) - 1} more",
        sum(share.kept for share in part),
        sum(share.removed for share in part),
        total([share.unsure_kept for share in part]),
        total([share.unsure_removed for share in part]),
    )


def _pieces(counts: Sequence[int], width: int, marks: str) -> list[str]:
    """Of a bar, as long as the counts' shares; what is there at all has a character."""
    cells = [max(1, round(width * count / sum(counts))) if count else 0 for count in counts]
    while sum(cells) != width:  # by rounding
        cells[cells.index(max(cells))] += 1 if sum(cells) < width else -1
    return [mark * n for mark, n in zip(marks, cells)]


def _can_be_shown(marks: str, encoding: str) -> bool:
    try:
        marks.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
