"""How a command ends: its exit status, and one message where something is wrong."""

import sys
from collections.abc import Callable
from typing import Any

from shapray.credentials import without_credentials
from shapray.errors import ClusterError, JobError, StorageError, TasksFailed
from shapray.storage.claim import ClaimLost
from shapray.text import shown

DONE, INPUT_WRONG, TASKS_FAILED, INTERRUPTED = 0, 2, 3, 130


def exit_status(command: Callable[[], None], interrupted: str) -> int:
    """Do what was asked; what stops it is said on stderr.

    Args:
        interrupted: said where the user stops it: what is kept, and how to go on.
    """
    try:
        command()
    except JobError as error:
        return _stop(INPUT_WRONG, error)
    except (StorageError, ClusterError, ClaimLost, TasksFailed) as error:
        return _stop(TASKS_FAILED, error)
    except KeyboardInterrupt:
        return _stop(INTERRUPTED, interrupted)
    return DONE


def _stop(status: int, message: Any) -> int:
    print(f"shapray: {shown(without_credentials(str(message)))}", file=sys.stderr)
    return status
