"""The command for a report of a run that is there.

python -m shapray.report RUN_DIR
"""

import sys
from collections.abc import Sequence

from shapray.exits import Command, exit_status
from shapray.report.page import publish_report
from shapray.storage.run_directory import RunDirectory

_EPILOG = """\
example:
  python -m shapray.report runs/quickstart

Writes RUN_DIR/report.html, one page that loads nothing, from the tables that are in RUN_DIR; what
is not there is named on the page, with the command that makes it. RUN_DIR is a folder or any
fsspec URL.

exit status:
  0  done
  2  RUN_DIR holds no run, or a file of it is not one of this program's (one message on stderr)
  3  the storage failed, or a table is damaged
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status. Messages for the user go to stderr."""
    parser = Command("report", "Make report.html of a run.", _EPILOG)
    parser.add_run_dir()
    options = parser.parse_args(arguments)
    return exit_status(
        lambda: print(publish_report(RunDirectory(options.run_dir))),
        "stopped; the run directory is as it was",
    )


if __name__ == "__main__":
    sys.exit(main())
