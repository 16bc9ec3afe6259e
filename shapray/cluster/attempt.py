"""One call of code that may be anybody's: what goes wrong comes back in plain strings."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shapray.errors import ClusterError, JobError, StorageError


@dataclass(frozen=True)
class Trouble:
    """An exception in plain strings: its class may not exist where it is read.

    Attributes:
        kind: "job" (what the user brought is wrong), "storage", or "task" (anything else).
        message: for a line.
    """

    kind: str
    message: str
    traceback: str

    def not_set_up(self) -> Exception:
        """What to raise if a worker could not be made."""
        if self.kind == "storage":
            return StorageError(self.message)
        message = (
            f"a worker cannot be set up: {self.message} (what the job names must be importable or "
            "readable wherever a worker runs)"
        )
        if self.kind == "job":
            return JobError(message)
        return ClusterError(f"{message}\n{self.traceback}")


def attempt(do: Callable[..., Any], *arguments: Any) -> Any:
    """What the call returns, or a `Trouble`; an interrupt passes, and so does the end by Ray."""
    try:
        return do(*arguments)
    except JobError as error:
        return Trouble("job", str(error), traceback.format_exc())
    except StorageError as error:
        return Trouble("storage", str(error), traceback.format_exc())
    except SystemExit as error:
        *_, (frame, line) = traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).startswith("ray."):
            raise  # by Ray's handler of signals: the node goes, or the job was stopped
        place = f"{frame.f_code.co_filename}, line {line}"
        message = f"the program was ended by sys.exit({error.code!r}) in {place}"
        return Trouble("job", message, traceback.format_exc())
    except Exception as error:  # set aside with its traceback
        kind = "job" if isinstance(error, ImportError) else "task"
        return Trouble(kind, f"{type(error).__name__}: {error}", traceback.format_exc())
