"""The command that holds two runs against each other: rank agreement, and units that change sides.

python -m shapray.compare RUN_A RUN_B [--by COLUMN]
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from shapray.analysis.comparison import Comparison, comparison
from shapray.driver.console import PlainConsole
from shapray.exits import Command, exit_status

_EPILOG = """\
example:
  python -m shapray.compare runs/quickstart runs/again
  python -m shapray.compare runs/quickstart s3://bucket/runs/quickstart --by mean

exit status:
  0  done, whatever was found
  2  a run or the column is not there, or the networks have other groups (one message on stderr)
  3  the storage failed
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status. Messages for the user go to stderr."""
    parser = Command(
        "compare",
        "Compare how two runs rank the units of a network, and which they remove.",
        _EPILOG,
    )
    parser.add_run_dir("run_a")
    parser.add_run_dir("run_b", "that of another one")
    parser.add_argument(
        "--by", metavar="COLUMN", default="mean_abs", help="of the scores; default: mean_abs"
    )
    options = parser.parse_args(arguments)
    console = PlainConsole(soft_wrap=True)

    def command() -> None:
        found = comparison(options.run_a, options.run_b, options.by)
        console.print(f"A: {options.run_a}\nB: {options.run_b}\n")
        _show(console, found, options.by)

    return exit_status(command, "stopped; nothing was written")


def _show(console: Console, found: Comparison, by: str) -> None:
    for note in found.notes:
        console.print(note)
    rows = found.agreement.to_pylist()
    table = Table(box=box.SIMPLE)
    table.add_column("group", style="bold", overflow="fold")
    for title in ("units", "Spearman", "Kendall", "both/A/B"):
        table.add_column(title, justify="right")
    for row in rows:
        correlations = (_interval(row, name) for name in ("spearman", "kendall"))
        table.add_row(row["group"], str(row["n_units"]), *correlations, _sides(row))
    console.print(table)
    console.print(
        f"rank correlations of {by}, with 95 % intervals as if the units were drawn at random; the "
        "last column: units that both cuts remove, only A's, only B's"
    )
    for row in rows:
        for name, units in (("A", row["only_in_a"]), ("B", row["only_in_b"])):
            if units:
                console.print(f"{row['group']}: only {name} removes {', '.join(map(str, units))}")


def _interval(row: Mapping[str, Any], name: str) -> str:
    value, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
    if value is None:
        return "not known"
    return f"{value:.3f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")


def _sides(row: Mapping[str, Any]) -> str:
    if row["removed_in_both"] is None:
        return "no cut"
    return f"{row['removed_in_both']}/{len(row['only_in_a'])}/{len(row['only_in_b'])}"
