"""What sections are made of: a table, a figure, a word on what is missing; and the templates."""

import hashlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from shapray.report import wording
from shapray.storage import names
from shapray.text import shown as harmless

_RUN = "python -m shapray.run JOB.yaml"


@dataclass(frozen=True)
class Cell:
    """Of a table. `sort`: what its column is sorted by, None: at the end."""

    shown: str | Markup
    sort: float | str | None = None

    @property
    def key(self) -> str | None:
        """What the page holds to sort by; None: nothing, or a text that is shown anyway."""
        if isinstance(self.sort, str):
            shown = self.shown.striptags() if isinstance(self.shown, Markup) else self.shown
            return None if self.sort == shown else self.sort
        if isinstance(self.sort, float):
            return f"{self.sort:.5g}"
        return None if self.sort is None else str(self.sort)


@dataclass(frozen=True)
class Grid:
    """A table that a reader can sort.

    Attributes:
        caption: what a row is, for those who do not see the page.
        columns: their titles.
        texts: how many columns are text; those after them are numbers.
        total: a last row that stays the last.
    """

    caption: str | Markup
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    texts: int = 1
    total: Sequence[Cell] = ()


@dataclass(frozen=True)
class Missing:
    """A file that is not there.

    Attributes:
        what: that a reader would see.
        path: of the file.
        command: that makes it.
        why: it is not there, if that is known.
    """

    what: str
    path: str
    command: str = _RUN
    why: str = ""


@dataclass(frozen=True)
class Section:
    """Of the page: `key` is that of its template, `content` what this shows."""

    key: str
    title: str
    content: Mapping[str, Any] = field(default_factory=dict)

    def html(self) -> Markup:
        template = _ENVIRONMENT.get_template(f"{self.key}.html")
        return Markup(template.render(section=self, **self.content))


def not_explained(table: str, what: str) -> Missing:
    """One of the tables in ``explain/``."""
    return Missing(
        what,
        names.explained(table),
        why="It is made at the end of a run, once the network is cut, unless explain.images is 0; "
        "what is told by class needs labels, of two classes or more.",
    )


def text(value: str | Markup, sort: str | None = None) -> Cell:
    """A cell with a name; `sort`: what it is sorted by, if not that."""
    if sort is None:
        sort = value.striptags() if isinstance(value, Markup) else value
    return Cell(value, harmless(sort))


def num(value: float | None, form: Any = wording.number) -> Cell:
    """A cell with a number; `form` says how it is written."""
    return Cell(form(value), value if wording.known(value) else None)


def with_error(value: float | None, error: float | None) -> Cell:
    """A number and its standard error."""
    if not wording.known(error):
        return num(value)
    form = f"{wording.number(value)} ± {wording.number(error, 2)}"
    return Cell(form, value)


def with_interval(value: float | None, low: float | None, high: float | None, form: Any) -> Cell:
    """A number and its 95% interval."""
    if not (wording.known(value) and wording.known(low) and wording.known(high)):
        return num(value, form)
    shown = Markup("{} <small>{}</small>").format(
        form(value), wording.between(form(low), form(high))
    )
    return Cell(shown, value)


def asset(name: str) -> str:
    """The text of a file beside the templates."""
    return files("shapray.report").joinpath("templates", name).read_text("utf-8")


def source_hash(script: str) -> str:
    """By which a browser knows the one script that may run."""
    return "sha256-" + b64encode(hashlib.sha256(script.encode()).digest()).decode()


def page(parts: Sequence[Any], **content: Any) -> str:
    """The whole page around its parts."""
    script = asset("sort.js")
    return _ENVIRONMENT.get_template("page.html").render(
        parts=parts,
        style=Markup(asset("style.css")),
        script=Markup(script),
        script_hash=Markup(source_hash(script)),
        **content,
    )


_ENVIRONMENT = Environment(
    loader=PackageLoader("shapray.report"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
_ENVIRONMENT.filters |= {
    "named": wording.named,
    "percent": wording.percent,
    "count": wording.count,
    "number": wording.number,
    "short": wording.short,
}
