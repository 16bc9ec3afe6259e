"""The command: a job file in, scores and a smaller network out.

python -m shapray.run JOB.yaml [section.key=value ...] [--plan] [--budget TIME]
"""

import sys
from collections.abc import Sequence

from shapray.config import load_job
from shapray.driver.console import PlainConsole
from shapray.driver.preview import preview
from shapray.driver.stages import run
from shapray.exits import Command, exit_status

_EPILOG = """\
example:
  python -m shapray.run jobs/quickstart.yaml prune.ratio=0.5 output=runs/half
  python -m shapray.run jobs/quickstart.yaml --plan
  python -m shapray.run jobs/quickstart.yaml --budget 2min

Any key of the job file can be given on the command line; the value is YAML. The same command
again goes on where a stopped run was. Inside `ray job submit` the running cluster is used,
otherwise Ray is started on this machine.

exit status:
  0  done
  2  the job file or an input is wrong (one message on stderr; nothing was written, unless
     a further round of prune.rounds cannot be: then what was scored is kept)
  3  some tasks failed for good, or the storage or the cluster did; what was scored is kept, and
     the same command again does only the rest
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status. Messages for the user go to stderr."""
    parser = Command(
        "run",
        "Score the units of a network by their Shapley values, remove the units worth least and "
        "measure what is left.",
        _EPILOG,
    )
    parser.add_argument("job", metavar="JOB.yaml", help="the job file")
    parser.add_overrides("file")
    parser.add_argument(
        "--plan",
        action="store_true",
        help="say what would be scored and how long it would take, and stop; writes nothing",
    )
    parser.add_argument(
        "--budget",
        metavar="TIME",
        help="choose score.permutations so that the run is predicted to take no longer than "
        "TIME (90s, 30min, 2h, 1d)",
    )
    options = parser.parse_intermixed_args(arguments)
    console = PlainConsole(soft_wrap=True)

    def command() -> None:
        job = load_job(options.job, options.overrides)
        if options.plan or options.budget is not None:
            job = preview(job, options.budget, options.plan, console)
        if not options.plan:
            run(job, console)

    return exit_status(command, "stopped; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
