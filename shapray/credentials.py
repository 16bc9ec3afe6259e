"""What could be a credential, taken out of all that is written or shown."""

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"  # what stands in its place

_SECRET = r"secret|passw(?:or)?d|token(?![a-z_])|credential|(?:access|account|api|private)_?key"
_SECRET_KEY = re.compile(rf"{_SECRET}|(?:^|_)key$", re.IGNORECASE)
_SECRET_IN_TEXT = re.compile(
    rf"""((?<!\w)\w*?(?:{_SECRET})\w*(?<!Error)['"]?\s*[:=]\s*)(['"]?)[^\s'",;)}}\]]+""",
    re.IGNORECASE,
)

# Names that mean a credential and nothing else, and names that may mean one.
_SURELY = re.compile(
    r"secret|passw|credential|(?:access|account|api|private)[_-]?(?:key|token)"
    r"|(?:^|[_-])(?:auth|session|refresh|bearer|hf|github|gh|id)[_-]?(?:key|token)(?![a-z])",
    re.IGNORECASE,
)
_ALONE = {"key", "token"}
_MAYBE = re.compile(r"(?:key|token)s?(?![a-z])", re.IGNORECASE)
_GENERATED = re.compile(r"(?=.*[a-zA-Z])(?=.*\d)(?!.*://)\S{16,}")  # as keys are, and words are not
_CAMEL_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_ASSIGNED = re.compile(r"""((?<![\w-])([\w-]+)['"]?\s*[:=]\s*['"]?)([^\s'",;)}\]]+)""")


def without_credentials(value: Any) -> Any:
    """`value` with what could be a credential replaced by ``***``: the user part and the query
    values of every URL in a string, what a string says that it is one (``secret_key='...'``), and
    entries of mappings whose name says so."""
    if isinstance(value, str):
        return _SECRET_IN_TEXT.sub(rf"\1\2{HIDDEN}", _in_urls(value))
    if isinstance(value, Mapping):
        return {
            key: HIDDEN
            if _SECRET_KEY.search(str(key)) and isinstance(item, str | Mapping | list | tuple)
            else without_credentials(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_credentials(item) for item in value]
    return value


def recordable(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A factory's keyword arguments as a file may hold them, to call the factory with again.

    Names such as `pool_key` or `tokens_to_token` belong to many networks. So here, unlike in
    `without_credentials`, an entry is hidden only if its name can mean nothing else
    (``api_key``), or if it may (``pool_key``) and the value looks as if a machine had made it;
    URLs lose their user part and their query values all the same.
    """
    return {name: _recordable(value, name) for name, value in arguments.items()}


def is_hidden(value: Any) -> bool:
    """Whether something of a value was taken out of it."""
    if isinstance(value, Mapping):
        return any(map(is_hidden, value.values()))
    if isinstance(value, list | tuple):
        return any(map(is_hidden, value))
    return isinstance(value, str) and HIDDEN in value


def _recordable(value: Any, name: str, maybe: bool = False) -> Any:
    """Args:
    name: of the value; none for an entry of a list.
    maybe: what it lies in has a name that may mean a credential.
    """
    name = _CAMEL_CASE.sub("_", name)
    maybe = maybe or _MAYBE.search(name) is not None
    if (_SURELY.search(name) or name.lower() in _ALONE) and isinstance(
        value, str | Mapping | list | tuple
    ):
        return HIDDEN
    if isinstance(value, str):
        text = _in_urls(value)
        return HIDDEN if maybe and _GENERATED.fullmatch(text) else _ASSIGNED.sub(_assigned, text)
    if isinstance(value, Mapping):
        return {key: _recordable(item, str(key), maybe) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_recordable(item, "", maybe) for item in value]
    return value


def _assigned(match: re.Match[str]) -> str:
    """What a text assigns to a name; ``package.token:Network`` assigns nothing."""
    beginning, name, value = match.groups()
    hidden = (
        _SURELY.search(name)
        or (name.lower() in _ALONE and not beginning.endswith(":"))
        or (_MAYBE.search(name) and _GENERATED.fullmatch(value))
    )
    return beginning + HIDDEN if hidden else match[0]


def _in_urls(text: str) -> str:
    # A password may hold slashes, so after a colon that is no port's the user part ends at @.
    text = re.sub(r"(?<=://)(?:[^/\s@:]*:(?!\d+/)[^\s@]*|[^/\s@]*)@", f"{HIDDEN}@", text)
    return re.sub(r"(://[^\s?]*\?)(\S+)", _hide_query, text)


def _hide_query(match: re.Match[str]) -> str:
    return match[1] + re.sub(r"=[^&'\"]*", f"={HIDDEN}", match[2])
