"""What the job's order of the units is by, in words: who is first in it is the last to go."""

from collections.abc import Sequence

from markupsafe import Markup

from shapray.report import wording
from shapray.report.read import Run
from shapray.storage.criteria import CRITERIA

MEANINGS = {
    "mean": "the mean of the unit's Shapley values over the calibration images",
    "mean_abs": "the mean of the unit's absolute Shapley values",
    "obs": "what of a unit the others cannot make up for by least squares",
    "taylor": "the mean size of the loss's derivative by a unit, times the unit",
}
SEVERAL = "a unit's places by each of them are added up"
COLUMNS = {  # of the table of units, that hold a criterion
    "obs": "unrepaired",
    "l1_norm": "l1_norm",
    "taylor": "taylor",
    "leave_one_out": "leave_one_out",
}


def ranked_by(run: Run) -> tuple[str, ...]:
    """The criteria of the job's own order; none where it is not known."""
    asked = run.record.asked("prune", "rank_by") or []
    names = tuple(map(str, asked if isinstance(asked, list) else [asked]))
    if run.metrics is not None and run.metrics.criterion != "shapley":
        return tuple(run.metrics.criterion.split(" & "))
    if "auto" in names:  # resolved where the cut was made
        return () if run.metrics is None else ("mean_abs",)
    return names


def in_words(names: Sequence[str]) -> Markup:
    """``obs (what ...) and mean_abs (the mean ...), a unit's places by each ... added up``."""
    said = [_explained(name) for name in names]
    together = Markup(", ").join(said[:-1]) + Markup(" and ") + said[-1] if said[1:] else said[0]
    return together + Markup("; {}").format(SEVERAL) if said[1:] else together


def by_mean(run: Run) -> bool:
    """Whether the order is that by the score, so that last means least."""
    return ranked_by(run) == ("mean",)


def ends(run: Run) -> dict[str, str]:
    """What the units at both ends of a group's order are called."""
    first, last = ("worth most", "worth least") if by_mean(run) else ("ranked first", "ranked last")
    return {"top": first, "bottom": last}


def criterion(column: str) -> str:
    """What a column of the table of units is called on the page: as the criterion that it is."""
    name = next((name for name, held in COLUMNS.items() if held == column), column)
    return name.replace("_", " ")


def _explained(name: str) -> Markup:
    meaning = MEANINGS.get(name)
    if meaning is None and name in CRITERIA:
        meaning = (CRITERIA[name].metadata or {}).get(b"meaning", b"").decode()
    shown = Markup("<strong>{}</strong>").format(wording.named(name))
    return shown + Markup(" ({})").format(meaning) if meaning else shown
