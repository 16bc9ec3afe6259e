"""Scores to an order in which units go. Arrays in, indices out; knows no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from shapray.config.prune import AUTO, SHAPLEY, Prune
from shapray.pruning.criteria.at_random import draw

Scores = Mapping[str, np.ndarray]  # group -> (n_units,), larger = more worth keeping


@dataclass(frozen=True)
class Ranking:
    """All units by one criterion.

    Attributes:
        criterion: what it is called in a job; "shapley" is the job's own by its Shapley values,
            alone or as `auto` takes them.
        seed: of a random one.
        scores: the order of the groups is the mapping's.
    """

    criterion: str
    seed: int | None
    scores: Scores

    @property
    def name(self) -> str:
        return self.criterion if self.seed is None else f"{self.criterion}-{self.seed}"

    @property
    def orders(self) -> dict[str, list[int]]:
        """Group -> its units, those that go first in front; equal scores by the units' order."""
        return {
            group: np.argsort(values, kind="stable").tolist()
            for group, values in self.scores.items()
        }


def rankings(table: pa.Table, prune: Prune, macs_per_unit: Mapping[str, float]) -> list[Ranking]:
    """The job's own ranking, then those that are compared with it.

    Args:
        table: ``scores.parquet``, with a column for every criterion that the job's own ranking
            reads; a rival without one is left out.
        macs_per_unit: group -> multiply-adds that go with a unit.
    Raises:
        ValueError: a score is not finite (what was not measured cannot be ranked).
    """
    by = own_criteria(table, prune)
    label = "shapley" if prune.rank_by == (AUTO,) else _label(by)
    asked = [(label, by), *((name, (name,)) for name in prune.compared)]
    found: list[Ranking] = []
    for label, names in asked:
        if not all(_is_there(table, name) for name in names) or (found and names == by):
            continue  # a rival that says nothing of this network, or is none
        seeds = prune.random_seeds if names == ("random",) else (None,)
        for seed in seeds if found else seeds[:1]:  # the job's own is one ranking
            parts = [_scores(table, name, seed) for name in names]
            by_cost = prune.per_multiply_add and names != ("random",)
            scores = {
                group: together(
                    [part[group] for part in parts], macs_per_unit[group] if by_cost else None
                )
                for group in parts[0]
            }
            found.append(Ranking(label, seed, scores))
    return found


def needed_criteria(prune: Prune) -> list[str]:
    """The criteria beside Shapley values whose columns a job's rankings read."""
    own = _best(prune) if prune.rank_by == (AUTO,) else prune.rank_by
    names = dict.fromkeys([*own, *prune.criteria])
    return [name for name in names if name != "random" and not SHAPLEY.fullmatch(name)]


def _best(prune: Prune) -> tuple[str, ...]:
    """What `auto` is. Under a repair by least squares a unit counts for what it does and for what
    of it the others cannot do in its place; nothing else was clearly ahead of the two together on a
    ResNet-20 for CIFAR-10. Without, the first alone; so too where groups are compared by their
    units' scores, since places within a group say nothing of others."""
    repaired = "least_squares" in prune.repair and prune.allocation == "measured"
    return ("obs", "mean_abs") if repaired else ("mean_abs",)


def own_criteria(table: pa.Table, prune: Prune) -> tuple[str, ...]:
    """What the job's own ranking is by. `auto` makes do with what could be computed."""
    if prune.rank_by != (AUTO,):
        return prune.rank_by
    return tuple(name for name in _best(prune) if _is_there(table, name))


def _is_there(table: pa.Table, name: str) -> bool:
    return name == "random" or SHAPLEY.fullmatch(name) is not None or name in table.column_names


def _label(rank_by: Sequence[str]) -> str:
    if len(rank_by) == 1 and SHAPLEY.fullmatch(rank_by[0]):
        return "shapley"
    return " & ".join(rank_by)


def _scores(table: pa.Table, name: str, seed: int | None) -> dict[str, np.ndarray]:
    groups = np.array(table["group"].to_pylist(), dtype=object)
    if name == "random":
        return {
            group: draw(seed or 0, group, int((groups == group).sum()))
            for group in dict.fromkeys(groups)
        }
    formula = SHAPLEY.fullmatch(name)
    values = table[formula["score"] if formula else name].to_numpy()
    if formula and formula["spread"]:
        values = values + float(formula["times"]) * table[formula["spread"]].to_numpy()
    scores = {group: values[groups == group] for group in dict.fromkeys(groups)}
    for group, of_units in scores.items():
        wrong = np.flatnonzero(~np.isfinite(of_units))
        if len(wrong):
            raise ValueError(
                f"group '{group}': {len(wrong)} of {len(of_units)} scores by {name} are not "
                f"finite, the first is that of unit {wrong[0]} ({of_units[wrong[0]]})"
            )
    return scores


def together(parts: Sequence[np.ndarray], cost: float | None) -> np.ndarray:
    """One number for each unit of a group, larger = more worth keeping.

    Args:
        parts: (..., n_units) by each criterion of a ranking.
        cost: multiply-adds that go with a unit, if its worth is for what it costs.
    """
    scores = parts[0] if len(parts) == 1 else _ranks_summed(parts)
    return scores if cost is None else _per_cost(scores, cost)


def _per_cost(scores: np.ndarray, cost: float) -> np.ndarray:
    """Worth for what a unit costs. Of a unit that does harm, below zero, the more goes the better:
    its score is multiplied, so that the dearest go first, still before all that do good."""
    return np.where(scores > 0, scores / cost, scores * cost)


def _ranks_summed(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The places by each criterion added up: 0 for the first to go by all of them."""
    places = [part.argsort(axis=-1, kind="stable").argsort(axis=-1) for part in parts]
    total = np.sum(np.broadcast_arrays(*places), axis=0)
    return total / (len(parts) * parts[0].shape[-1])
