"""Filter cards: on which images a unit matters, where in them, and for what."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from shapray.errors import StorageError
from shapray.report import order, wording
from shapray.report.parts import Missing, Section, not_explained
from shapray.report.read import Run, by_group
from shapray.report.sprites import Place, Sprite, sprite
from shapray.report.units import card_key, tagged
from shapray.storage import names
from shapray.text import shown

_ALL_SPRITES = 1 << 20  # bytes of all groups' sprites together, at most
_SPRITE = 18 << 10  # of one group's
N_MODULES = 8  # that a card names
_DIRECTIONS = (("up", "Raise its score most"), ("down", "Lower its score most"))


def section(run: Run) -> Section:
    found = run.explained.get("cards")
    missing: list[Missing] = []
    if found is None:
        missing.append(not_explained("cards", "Cards of the filters"))
    return Section(
        "cards",
        "Filter cards",
        {
            "missing": missing,
            "groups": [] if found is None else list(_groups(run, found)),
            "ends": order.ends(run),
            "by_mean": order.by_mean(run),
        },
    )


def _groups(run: Run, table: pa.Table) -> Iterator[dict[str, Any]]:
    cards = by_group(table)
    kernels = run.explained.get("kernels")
    pictures = (
        {}
        if kernels is None
        else {
            (row["group"], row["unit"]): row["picture"]
            for row in kernels.to_pylist()
            if row["picture"] is not None
        }
    )
    limit = min(_SPRITE, _ALL_SPRITES // max(1, len(cards)))
    for number, (group, rows) in enumerate(cards.items()):
        of_units = _by_unit(rows.to_pylist())
        of_kernels = {
            place: pictures[group, unit]
            for place, unit in enumerate(of_units)
            if (group, unit) in pictures
        }
        try:
            made = sprite(list(of_units.values()), of_kernels, limit)
        except ValueError as error:
            raise StorageError(
                f"{run.shown}/{names.explained('cards')} is damaged: {error}; delete it and run "
                "the job again to have it made anew"
            ) from error
        yield {
            "key": f"sprite-{number}",
            "name": wording.named(group),
            "sprite": made,
            "n_units": len(of_units),
            "coupled": _coupled(run, group),
            "cards": [
                _card(run, group, unit, rows_, place, made, f"sprite-{number}")
                for place, (unit, rows_) in enumerate(of_units.items())
            ],
        }


def _by_unit(rows: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """The rows of each unit, those of the top first; of a unit those that raise its score first."""
    rows = sorted(
        rows, key=lambda row: (row["end"] != "top", row["direction"] != "up", row["rank"])
    )
    units: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        of_unit = units.setdefault(row["unit"], [])
        if row["end"] == of_unit[0]["end"] if of_unit else True:  # in both ends of a small group
            of_unit.append(row)
    return units


def _coupled(run: Run, group: str) -> Markup:
    """Modules that lose channels with a unit of the group."""
    rows = [] if run.groups is None else run.groups.to_pylist()
    modules: list[str] = next((row["modules"] for row in rows if row["group"] == group), [])
    shown = Markup(", ").join(wording.named(name) for name in modules[:N_MODULES])
    more = len(modules) - N_MODULES
    return shown + (f" and {more} more" if more > 0 else "")


def _card(
    run: Run,
    group: str,
    unit: int,
    rows: list[dict[str, Any]],
    place: int,
    made: Sprite,
    key: str,
) -> dict[str, Any]:
    facts = run.unit_facts.get((group, unit), {})
    scores = run.scores_of.get(group)
    score = absolute = None
    if scores is not None and unit < scores.num_rows:
        row = scores.slice(unit, 1).to_pylist()[0]
        score = f"{wording.number(row['mean'])} ± {wording.number(row['total_error'], 2)}"
        absolute = wording.number(row["mean_abs"])
    kernel = made.kernels.get(place)
    return {
        "title": tagged(run, group, unit, Markup("Unit {}").format(unit)),
        "anchor": card_key(run, group, unit),
        "group": wording.named(group),
        "end": order.ends(run).get(rows[0]["end"], ""),
        "score": score,
        "absolute": absolute,
        "serves": wording.class_name(facts.get("serves"), run.record.class_names)
        if facts.get("serves") is not None
        else None,
        "selectivity": wording.two(facts.get("selectivity")),
        "wrong": wording.percent(facts.get("misplaced"))
        if wording.known(facts.get("misplaced"))
        else None,
        "kernel": _crop(made, key, kernel, "Its kernel on the image's channels")
        if kernel
        else None,
        "directions": [
            {"title": title, "pictures": pictures}
            for direction, title in _DIRECTIONS
            if (pictures := list(_pictures(run, rows, direction, place, made, key)))
        ],
    }


def _pictures(
    run: Run,
    rows: list[dict[str, Any]],
    direction: str,
    place: int,
    made: Sprite,
    key: str,
) -> Iterator[dict[str, Any]]:
    for column, row in enumerate(rows):
        if row["direction"] != direction:
            continue
        label = wording.class_name(row["label"], run.record.class_names)
        value = wording.number(row["value"], 2)
        spoken = label.striptags() if isinstance(label, Markup) else label
        there = row["picture"] is not None
        yield {
            "picture": _crop(
                made, key, made.places[place][column], f"Image of {spoken}, value {value}"
            )
            if there
            else None,
            "where": _crop(made, key, made.overlaid[place][column], _where(row))
            if there and row["where"]
            else None,
            "label": label,
            "value": value,
            "image": shown(row["image_id"]),
        }


def _where(row: dict[str, Any]) -> str:
    """In words, where in the image the unit adds most."""
    height, width = row["where_height"] or 0, row["where_width"] or 0
    if not height or len(row["where"]) != height * width:
        return "Where in the image is not known"
    values = np.asarray(row["where"], float).reshape(height, width)
    y, x = np.unravel_index(int(np.nanargmax(np.nan_to_num(values, nan=-np.inf))), values.shape)
    vertical = ("top", "middle", "bottom")[min(2, int(3 * y / height))]
    horizontal = ("left", "centre", "right")[min(2, int(3 * x / width))]
    return f"Adds most to the logit at the {vertical} {horizontal}"


def _crop(made: Sprite, key: str, place: Place, alternative: str) -> Markup:
    return Markup(
        '<svg class="crop" role="img" aria-label="{}" viewBox="{} {} {} {}"><use href="#{}"/></svg>'
    ).format(alternative, place.x, place.y, place.side, place.side, key)
