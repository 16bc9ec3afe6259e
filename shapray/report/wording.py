"""Numbers, and names that come from a job, as a reader of the page sees them."""

import math
import re
from collections.abc import Sequence

from markupsafe import Markup, escape

from shapray.text import shown

NONE = "–"  # where there is no number
_BREAKS = re.compile(r"[._/]+(?=[^._/])|[^._/\s]{24}(?=[^._/\s])")


def named(text: str) -> Markup:
    """A name from the job: inert, its direction of writing its own affair, broken into lines only
    behind what parts it (of what has no parts, after 24 letters)."""
    harmless = shown(text)
    ends = [found.end() for found in _BREAKS.finditer(harmless)]
    pieces = [harmless[start:end] for start, end in zip([0, *ends], [*ends, None])]
    return Markup("<bdi>{}</bdi>").format(Markup("<wbr>").join(pieces))


def unit_name(group: str, unit: int) -> Markup:
    return named(group) + Markup("&#8239;/&#8239;") + escape(unit)


def class_name(label: int | None, names: Sequence[str]) -> Markup:
    """What a label is called; ``class 8`` where nobody said."""
    if label is None:
        return Markup(NONE)
    return named(names[label]) if 0 <= label < len(names) else escape(f"class {label}")


def known(number: float | None) -> bool:
    return number is not None and math.isfinite(number)


def percent(share: float | None, digits: int = 1) -> str:
    return f"{share:.{digits}%}" if known(share) else NONE


def points(difference: float | None) -> str:
    """A difference of shares, in percentage points."""
    return f"{100 * difference:+.2f}".replace("-", "−") if known(difference) else NONE  # type: ignore[operator]


def change(before: float | None, after: float | None) -> float | None:
    """In percentage points, of two shares as `percent` shows them: a reader may subtract."""
    if before is None or after is None or not (known(before) and known(after)):
        return None
    return float(percent(after)[:-1]) - float(percent(before)[:-1])


def signed(number: float | None) -> str:
    """With its sign and a decimal."""
    return f"{number:+.1f}".replace("-", "−") if known(number) else NONE


def number(value: float | None, digits: int = 3) -> str:
    """So many digits that count, without an exponent where it reads well."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if -5 <= size < 6:
        text = f"{value:,.{min(8, max(0, digits - 1 - size))}f}"
    else:
        text = f"{value:.{digits - 1}e}"
    return text.replace("-", "−")


def two(value: float | None) -> str:
    """Of numbers that lie between -1 and 1: two decimals."""
    return f"{value:.2f}".replace("-", "−") if known(value) else NONE


def tenths(value: float | None) -> str:
    return f"{value:,.1f}" if known(value) else NONE


def count(value: float | None) -> str:
    return f"{value:,.0f}" if known(value) else NONE


def short(value: float | None) -> str:
    """``40.6 M``."""
    if value is None or not math.isfinite(value):
        return NONE
    power = min(4, max(0, int(math.log10(max(1.0, abs(value)))) // 3))
    scaled = value / 1000**power
    return f"{scaled:.0f}" if power == 0 else f"{scaled:.3g}\u202f{' kMGT'[power]}"


def between(low: str, high: str) -> str:
    return NONE if NONE in (low, high) else f"{low} to {high}"


def plural(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"
