"""The command that shows which units of a network go together, and which groups can be scored.

python -m shapray.groups JOB.yaml [section.key=value ...]
python -m shapray.groups torchvision:NAME | timm:NAME
"""

import sys
from collections.abc import Sequence

from shapray.driver.console import PlainConsole
from shapray.driver.overview import of_job, of_network, show
from shapray.errors import JobError
from shapray.exits import Command, exit_status

_EPILOG = """\
example:
  python -m shapray.groups jobs/quickstart.yaml
  python -m shapray.groups torchvision:resnet50
  python -m shapray.groups timm:convnextv2_atto

A network that is named is taken with random weights and random images; networks of timm need
shapray[timm]. Nothing is written.

exit status:
  0  done, whatever can be scored
  2  there is no such network, or the job file or an input is wrong (one message on stderr)
  3  the storage failed
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status. Messages for the user go to stderr."""
    parser = Command(
        "groups",
        "Show which units of a network can only be removed together, what scoring each group runs, "
        "and why some are not scored.",
        _EPILOG,
    )
    parser.add_argument(
        "network", metavar="JOB.yaml", help="a job file; or torchvision:NAME, timm:NAME"
    )
    parser.add_overrides("file")
    options = parser.parse_intermixed_args(arguments)
    console, waiting = PlainConsole(soft_wrap=True), PlainConsole(sys.stderr, soft_wrap=True)

    def command() -> None:
        if _is_name(options.network):
            if options.overrides:
                raise JobError(f"{options.network} is a network's name, without a job's values")
            show(of_network(options.network, waiting), console)
        else:
            show(of_job(options.network, options.overrides, waiting), console)

    return exit_status(command, "stopped; nothing was written")


def _is_name(network: str) -> bool:
    return ":" in network and "/" not in network and not network.endswith((".yaml", ".yml"))


if __name__ == "__main__":
    sys.exit(main())
