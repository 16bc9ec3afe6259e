"""How many units go from each group, so that the network meets a size.

Numbers in, numbers out: knows no network. A size is a function of how many units each group loses.
"""

import bisect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Counts = dict[str, int]  # group -> how many units go
Size = Callable[[Mapping[str, int]], float]

BINS = 4000  # that a budget is divided into
MAX_OPTIONS = 64  # of a group that are looked at
NEAR = 0.99  # of a target
WORTH, LITTLE = 1.25, 0.01  # of the least loss, and in nats: what coming near may cost
ROUNDS = 4  # of making sizes linear around what was found


class UnreachableError(ValueError):
    """No choice of counts is small enough.

    Attributes:
        nearest: the smallest size there is.
    """

    def __init__(self, nearest: float) -> None:
        super().__init__(f"the smallest is {nearest}")
        self.nearest = nearest


def options(n_units: int, min_units: int, round_to: int) -> list[int]:
    """How many units of a group may go, ascending, 0 first: what is left is a multiple of
    `round_to` and no less than `min_units`. Groups smaller than `round_to` are not rounded."""
    step = round_to if n_units >= round_to else 1
    least = max(min_units, 1)
    return [
        n for n in range(n_units) if n == 0 or (n_units - n >= least and (n_units - n) % step == 0)
    ]


def smallest(choices: Mapping[str, Sequence[int]], size: Size) -> float:
    """The least size that the choices allow."""
    return size({group: counts[-1] for group, counts in choices.items()})


def in_order(
    turns: Sequence[str], choices: Mapping[str, Sequence[int]], size: Size, target: float
) -> Counts:
    """Units taken in turns until the network is small enough.

    Args:
        turns: the group of the first unit to go, of the second, ...
        choices: group -> `options`, or those of them from some number on; a turn that is none
            waits for the next that makes one.
    Raises:
        UnreachableError: not even all turns are enough.
    """

    def after(n_turns: int) -> Counts:
        taken = dict.fromkeys(choices, 0)
        for group in turns[:n_turns]:
            taken[group] += 1
        return {
            group: max((n for n in choices[group] if n <= count), default=choices[group][0])
            for group, count in taken.items()
        }

    low, high = 0, len(turns)
    if size(after(high)) > target:
        raise UnreachableError(smallest(choices, size))
    while low < high:
        middle = (low + high) // 2
        if size(after(middle)) <= target:
            high = middle
        else:
            low = middle + 1
    return after(low)


def by_score(scores: Mapping[str, np.ndarray]) -> list[str]:
    """Turns by rank over all groups, the lowest score first; equal ones by the groups' order."""
    owners = [group for group, values in scores.items() for _ in values]
    pooled = np.concatenate(list(scores.values())) if scores else np.empty(0)
    return [owners[place] for place in np.argsort(pooled, kind="stable")]


def evenly(n_units: Mapping[str, int]) -> list[str]:
    """Turns in which all groups lose the same share at any time, as near as whole units allow."""
    shares = [((i + 1) / n, group) for group, n in n_units.items() for i in range(n)]
    return [group for _, group in sorted(shares, key=lambda turn: turn[0])]


def least_loss(
    losses: Mapping[str, Callable[[int], float]],
    choices: Mapping[str, Sequence[int]],
    size: Size,
    target: float,
) -> Counts:
    """The counts with the least sum of losses among those that are small enough.

    By dynamic programming over groups and a budget, which needs sizes that add up. They do where no
    layer lies between two groups; elsewhere they are made linear around what was found, again and
    again. What the bins leave of the budget is filled unit by unit.

    Args:
        losses: group -> count -> the loss with so many of its units gone.
        choices: group -> `options`, or those of them from some number on.
    Raises:
        UnreachableError: not even all that may go is enough.
    """
    if smallest(choices, size) > target:
        raise UnreachableError(smallest(choices, size))
    few = {group: _thinned(counts) for group, counts in choices.items()}
    loss_at = {group: np.array([losses[group](n) for n in counts]) for group, counts in few.items()}
    bargain = _Bargain(losses, choices, size, target)
    best, best_loss = None, math.inf
    current = {group: counts[0] for group, counts in choices.items()}
    for _ in range(ROUNDS):
        sizes = {
            group: np.array([size(current | {group: n}) for n in counts])
            for group, counts in few.items()
        }
        fixed = size(current) - sum(
            float(sizes[group][list(few[group]).index(n)]) for group, n in current.items()
        )
        picked = _knapsack(list(loss_at.values()), list(sizes.values()), target - fixed)
        found = {group: few[group][place] for group, place in zip(few, picked)}
        filled = bargain.filled(found)
        loss = bargain.loss(filled)
        if loss < best_loss:
            best, best_loss = filled, loss
        if found == current:
            break
        current = found
    assert best is not None
    return bargain.exchanged(best)


@dataclass(frozen=True)
class _Bargain:
    """A sum of losses to be small and a size to be met, and what one group's next step is to both.

    Attributes:
        losses, choices, size, target: see `least_loss`.
    """

    losses: Mapping[str, Callable[[int], float]]
    choices: Mapping[str, Sequence[int]]
    size: Size
    target: float

    def loss(self, counts: Counts) -> float:
        return sum(self.losses[group](n) for group, n in counts.items())

    def filled(self, counts: Counts) -> Counts:
        """Down to the target by the steps that cost least per size, then up to it by those that
        give most."""
        found = dict(counts)
        while self.size(found) > self.target:
            found = min(self._steps(found, +1), key=lambda step: step[0])[1]
        while True:
            steps = [
                (rate, after)
                for rate, after in self._steps(found, -1)
                if self.size(after) <= self.target
            ]
            if not steps:
                return found
            found = max(steps, key=lambda step: step[0])[1]

    def exchanged(self, counts: Counts) -> Counts:
        """Nearer to the target where a step up is too large alone: one group steps up, another goes
        down as far as it must. Where the target is not near, that may cost a little."""
        found, dearest = dict(counts), WORTH * self.loss(counts) + LITTLE
        while (now := self.size(found)) < self.target:
            better = [
                after
                for _, larger in self._steps(found, -1)
                for after in self._downs(larger)
                if now < self.size(after) <= self.target
                and self.loss(after) <= (dearest if now < NEAR * self.target else self.loss(found))
            ]
            if not better:
                break
            found = min(better, key=self.loss)
        return found

    def _steps(self, counts: Counts, direction: int) -> list[tuple[float, Counts]]:
        """(loss per size, counts after it) of every group's next step."""
        before, steps = self.size(counts), []
        for group, n in counts.items():
            place = self.choices[group].index(n) + direction
            if 0 <= place < len(self.choices[group]):
                after = counts | {group: self.choices[group][place]}
                change = abs(self.losses[group](after[group]) - self.losses[group](n))
                steps.append((change / max(abs(self.size(after) - before), 1e-9), after))
        return steps

    def _downs(self, counts: Counts) -> Iterator[Counts]:
        """For every group that can, the counts with the fewest more of its units gone that are
        small enough."""
        for group, n in counts.items():
            smaller = [counts | {group: more} for more in self.choices[group] if more > n]
            place = bisect.bisect_left(smaller, -self.target, key=lambda after: -self.size(after))
            if place < len(smaller):
                yield smaller[place]


def _thinned(counts: Sequence[int]) -> list[int]:
    """At most so many of them, first and last among them."""
    places = np.unique(np.linspace(0, len(counts) - 1, MAX_OPTIONS).round().astype(int))
    return [counts[place] for place in places]


def _knapsack(
    losses: Sequence[np.ndarray], sizes: Sequence[np.ndarray], budget: float
) -> list[int]:
    """The place in each array with the least sum of losses, the sum of sizes within the budget; the
    smallest of all if none is."""
    spare = budget - sum(float(found.min()) for found in sizes)
    if spare <= 0:
        return [int(found.argmin()) for found in sizes]
    width = spare / BINS
    best = np.zeros(BINS + 1)  # by bins that may be used
    choices = []
    for loss, size in zip(losses, sizes):
        # Half a bin too little on average is made good by the filling.
        bins = np.ceil((size - size.min()) / width - 1e-9).astype(int)
        table = np.full((len(loss), BINS + 1), np.inf)
        for place, n in enumerate(bins):
            if n <= BINS:
                table[place, n:] = best[: BINS + 1 - n] + loss[place]
        choice = table.argmin(0)
        best = table[choice, np.arange(BINS + 1)]
        choices.append((choice, bins))
    left, picked = BINS, []
    for choice, bins in reversed(choices):
        place = int(choice[left])
        picked.append(place)
        left -= int(bins[place])
    return picked[::-1]
