"""What could be a credential, taken out of all that is written or shown."""

import re
from collections.abc import Mapping
from typing import Any

_SECRET = r"secret|passw(?:or)?d|token(?![a-z_])|credential|(?:access|account|api|private)_?key"
_SECRET_KEY = re.compile(rf"{_SECRET}|(?:^|_)key$", re.IGNORECASE)
_SECRET_IN_TEXT = re.compile(
    rf"""((?:\w*)(?:{_SECRET})\w*(?<!Error)['"]?\s*[:=]\s*)(['"]?)[^\s'",;)}}\]]+""", re.IGNORECASE
)


def without_credentials(value: Any) -> Any:
    """`value` with what could be a credential replaced by ``***``: the user part and the query
    values of every URL in a string, what a string says that it is one (``secret_key='...'``), and
    entries of mappings whose name says so."""
    if isinstance(value, str):
        # A password may hold slashes, so after a colon that is no port's the user part ends at @.
        value = re.sub(r"(?<=://)(?:[^/\s@:]*:(?!\d+/)[^\s@]*|[^/\s@]*)@", "***@", value)
        value = re.sub(r"(://[^\s?]*\?)(\S+)", _hide_query, value)
        return _SECRET_IN_TEXT.sub(r"\1\2***", value)
    if isinstance(value, Mapping):
        return {
            key: "***"
            if _SECRET_KEY.search(str(key)) and isinstance(item, str | Mapping | list | tuple)
            else without_credentials(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_credentials(item) for item in value]
    return value


def _hide_query(match: re.Match[str]) -> str:
    return match[1] + re.sub(r"=[^&'\"]*", "=***", match[2])
