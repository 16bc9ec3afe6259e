"""The user's code: imported, called, and what it raises put into words."""

import contextlib
import difflib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import Any

from shapray.credentials import without_credentials
from shapray.errors import JobError
from shapray.inputs.libraries import library, maker

_EXTRAS = {"timm"}  # packages that are installed as an extra of their own name


@contextlib.contextmanager
def user_code(what_failed: str) -> Iterator[None]:
    """Whatever the code in the block raises is a JobError, even if it ends the program."""
    try:
        yield
    except (KeyboardInterrupt, JobError):
        raise
    except BaseException as error:
        raise JobError(f"{what_failed}: {cause(error)}") from error


def cause(error: BaseException) -> str:
    """``ValueError: its message``; for sys.exit, that it ended the program."""
    if not isinstance(error, SystemExit):
        return str(without_credentials(f"{type(error).__name__}: {error}"))
    said = isinstance(error.code, str)
    status = 1 if said else error.code or 0
    return f"it ended the program with exit status {status}" + f" ({error.code})" * said


def import_callable(spec: str, key: str) -> Callable[..., Any]:
    """The callable named by ``module:callable`` (dots allowed on both sides), ``module.callable``,
    or a library and a network of it (``timm:resnet18d``, see `libraries`).

    Args:
        spec: for example ``torchvision.models:resnet50``.
        key: where it was named, for messages.
    Raises:
        JobError: the module does not import, has no such name, or the name is not callable.
    """
    module_name, mark, name = spec.partition(":") if ":" in spec else spec.rpartition(".")
    if not (module_name and mark and name):
        raise JobError(f"{key}: '{spec}' is not of the form module:callable")
    _check_installed(module_name, spec, key)
    with user_code(f"{key}: cannot import module '{module_name}' of '{spec}'"):
        module = importlib.import_module(module_name)
        of_library = library(module_name)
    if of_library is not None and not hasattr(module, name):
        return maker(of_library, name, spec, key)
    try:
        with user_code(f"{key}: cannot take '{name}' from module '{module_name}'"):
            found = attrgetter(name)(module)
    except JobError as error:
        if not isinstance(error.__cause__, AttributeError):
            raise
        near = difflib.get_close_matches(name, dir(module))
        hint = f"; close to it: {', '.join(near)}" if near else ""
        raise JobError(f"{key}: module '{module_name}' has no '{name}'{hint}") from error
    if not callable(found):
        raise JobError(f"{key}: '{spec}' is a {type(found).__name__}, not a callable")
    return found


def _check_installed(module_name: str, spec: str, key: str) -> None:
    package = module_name.partition(".")[0]
    if package in _EXTRAS and importlib.util.find_spec(package) is None:
        raise JobError(
            f"{key}: '{spec}' needs {package}, which is not installed: "
            f"pip install 'shapray[{package}]'"
        )


def call(spec: str, kwargs: Mapping[str, Any], key: str) -> Any:
    """What the callable that `spec` names returns.

    Raises:
        JobError: as for `import_callable`, or it fails.
    """
    function = import_callable(spec, key)
    with user_code(f"{key}: {call_in_words(spec, kwargs)} failed"):
        return function(**kwargs)


def call_in_words(spec: str, kwargs: Mapping[str, Any]) -> str:
    return f"{spec}(**{without_credentials(dict(kwargs))})"
