"""Numbers and errors in words, for messages."""

import math
import re
from collections.abc import Sequence

N_NAMED = 4  # in a message, before "and n more"
# Control characters but the new line, and those that turn the direction of writing.
_OBEYED = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def one_line(error: Exception) -> str:
    """An error's class and the beginning of its message, for a group's reason."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def shown(text: str, encoding: str = "utf-8") -> str:
    """`text` for a terminal: what that would obey and what its encoding lacks, as escapes."""
    harmless = _OBEYED.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
    return harmless.encode(encoding, "backslashreplace").decode(encoding)


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 20 s``, ``5 h 12 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(n_bytes: int) -> str:
    """``12 kB``, ``3.4 MB``."""
    power = min(4, int(math.log10(max(1, n_bytes))) // 3)
    return f"{n_bytes / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def amount(number: float) -> str:
    """``686,720``, ``1.81 billion``."""
    for power, word in ((12, "trillion"), (9, "billion"), (6, "million")):
        if number >= 10**power:
            return f"{number / 10**power:.3g} {word}"
    return f"{number:,.0f}"


def some(names: Sequence[object]) -> str:
    """The first few, and how many more there are."""
    shown = ", ".join(map(str, names[:N_NAMED]))
    return shown + (f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else "")
