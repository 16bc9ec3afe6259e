"""Kinds of values in a job file: what is right, in words, and within what the libraries take."""

import contextlib
import math
import posixpath
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationError, ValidatorFunctionWrapHandler, WrapValidator


def such(words: str, holds: Callable[[Any], Any]) -> WrapValidator:
    """For an annotation: what reads as its type and `holds`; of anything else `words` are said."""

    def check(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
        with contextlib.suppress(ValidationError):
            found = read(value)
            if holds(found) and isinstance(found, bool) == isinstance(value, bool):  # true is no 1
                return found
        raise ValueError(words)

    return WrapValidator(check)


def whole(least: int, most: int, or_auto: bool = False) -> WrapValidator:
    words = f"expected {'auto or ' * or_auto}a whole number from {least:,} to {most:,}"
    return such(words, lambda found: found == "auto" or least <= found <= most)


def _bytes(value: Any) -> Any:
    """'2GiB' -> its number of bytes; what does not read as a size stays what it is."""
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d+)?)\s*(?:([kmgt])(i?))?b?\s*", f"{value}".lower())
    if not isinstance(value, str) or match is None:
        return value
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " "))


def is_a_folder(url: str) -> bool:
    """Not the root of a file system, nor the current folder or one above it."""
    path = posixpath.normpath(url.rpartition("://")[2].strip())
    return posixpath.basename(path) not in {"", ".", "..", "~"}


def empty_if_none(value: Any) -> Any:
    return {} if value is None else value


Text = Annotated[str, such("expected text, not blank (a number as text in quotes)", str.strip)]
Arguments = Annotated[dict[Text, Any], BeforeValidator(empty_if_none)]
Wanted = Annotated[
    str | int | bool,
    such(
        f"expected text, true, false or a whole number below {2**63:,}, of either sign",
        lambda value: isinstance(value, str) or abs(value) < 2**63,
    ),
]
Output = Annotated[
    str | int,
    such(
        "expected an output's name, or its place from 0",
        lambda found: found.strip() if isinstance(found, str) else found >= 0,
    ),
]
Seed = Annotated[int, whole(0, 2**63 - 1)]
Count = Annotated[int, whole(1, 2**31 - 1)]
Side = Annotated[int, whole(1, 2**14)]  # in pixels
Sides = Annotated[
    Side | tuple[Side, Side],
    such(f"expected a side or [height, width], each from 1 to {2**14:,}", bool),
]
Finite = Annotated[float, such("expected a finite number", math.isfinite)]
Positive = Annotated[float, such("expected a finite number above 0", lambda x: 0 < x < math.inf)]
Share = Annotated[float, such("expected a number from 0 to below 1", lambda x: 0 <= x < 1)]
SomeShare = Annotated[float, such("expected a number between 0 and 1", lambda x: 0 < x < 1)]
Gpus = Annotated[  # Ray's limits
    float | Literal["auto"],
    such(
        "expected auto, a whole number from 0 to 1,024 or a part of one GPU from 0.0001",
        lambda x: x == "auto" or x in range(1025) or 1e-4 <= x <= 1,
    ),
]
WorkerMemory = Annotated[  # bytes; in less than the floor there is no room for the libraries
    int,
    BeforeValidator(_bytes),
    such(
        "expected a size from 1GiB to 1024TiB, for example 2GiB or 4000MB",
        lambda size: 2**30 <= size <= 2**50,
    ),
]
