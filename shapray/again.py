"""The command for another cut: other criteria, sizes and repairs on scores that are there.

python -m shapray.prune RUN_DIR [section.key=value ...] [--name NAME]
"""

from collections.abc import Sequence

from shapray.driver.again import prune_again
from shapray.driver.console import PlainConsole
from shapray.exits import Command, exit_status

_EPILOG = """\
example:
  python -m shapray.prune runs/quickstart prune.macs=0.4
  python -m shapray.prune runs/quickstart prune.rank_by=taylor prune.repair=[] --name taylor

The job is the run's own, with what is given here in place of its values. Nothing is scored and no
Ray is started. Files go to RUN_DIR/prune/NAME/; what earlier cuts left stays.

exit status:
  0  done
  2  a value is wrong, or RUN_DIR has no scores (one message on stderr; nothing was written)
  3  a task failed, or the storage did
130  it was stopped (Ctrl-C); the same command makes the cut
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status. Messages for the user go to stderr."""
    parser = Command("prune", "Cut a network once more, on the scores of an earlier run.", _EPILOG)
    parser.add_run_dir()
    parser.add_overrides("job")
    parser.add_argument("--name", help="of the folder below RUN_DIR/prune/")
    options = parser.parse_intermixed_args(arguments)
    console = PlainConsole(soft_wrap=True)
    return exit_status(
        lambda: prune_again(options.run_dir, options.overrides, options.name, console),
        "stopped; the scores and earlier cuts are as they were, and the same command makes this "
        "cut, with the losses of groups that are measured already",
    )
