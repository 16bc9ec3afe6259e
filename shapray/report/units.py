"""How a unit is named: whether it is gone, and a link to its card where it has one."""

from markupsafe import Markup

from shapray.report import wording
from shapray.report.read import Run


def tagged(run: Run, group: str, unit: int, shown: str | Markup) -> Markup:
    """A unit's name, and whether it is gone."""
    tag = Markup(' <span class="tag">cut</span>') if run.is_removed(group, unit) else Markup("")
    return Markup("{}{}").format(shown, tag)


def linked(run: Run, group: str, unit: int, shown: str | Markup) -> Markup:
    """The same, leading to the unit's card where it has one."""
    name = Markup.escape(shown)
    if (group, unit) in run.carded:
        name = Markup('<a href="#{}">{}</a>').format(card_key(run, group, unit), name)
    return tagged(run, group, unit, name)


def full(run: Run, group: str, unit: int) -> Markup:
    """The same, with the group."""
    return linked(run, group, unit, wording.unit_name(group, unit))


def card_key(run: Run, group: str, unit: int) -> str:
    """By which other parts of the page lead to a card; no name of the job is in it."""
    place = run.scored.index(group) if group in run.scored else len(run.scored)
    return f"card-{place}-{unit}"
