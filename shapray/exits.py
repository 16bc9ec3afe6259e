"""How a command begins and ends: its arguments, its exit status, one message where it is wrong."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from shapray.credentials import without_credentials
from shapray.errors import ClusterError, JobError, StorageError, TasksFailed
from shapray.storage.claim import ClaimLost
from shapray.text import shown

DONE, INPUT_WRONG, TASKS_FAILED, INTERRUPTED = 0, 2, 3, 130
A_RUN = "the output folder of a run"


class Command(argparse.ArgumentParser):
    """``python -m shapray.NAME``; its help ends with examples and statuses as they are written.

    Args:
        name: of the module.
        description: what it does, in a sentence.
        epilog: examples, and what its exit statuses mean.
    """

    def __init__(self, name: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=f"python -m shapray.{name}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def add_run_dir(self, name: str = "run_dir", help: str = A_RUN) -> None:
        self.add_argument(name, metavar=name.upper(), help=help)

    def add_overrides(self, of: str) -> None:
        """Any keys of the job; `of`: whose values they replace."""
        self.add_argument(
            "overrides",
            metavar="section.key=value",
            nargs="*",
            help=f"values that replace the {of}'s",
        )


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
