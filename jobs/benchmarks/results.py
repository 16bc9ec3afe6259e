"""Results of the benchmarks: Parquet files that grow as groups finish, and the README's tables."""

import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.benchmarks.networks import machine

HERE = Path(__file__).parent
RESULTS = HERE / "results"
README = HERE / "README.md"
Row = dict[str, Any]


def merge(path: Path, rows: Sequence[Row], keys: tuple[str, ...]) -> None:
    """Add rows to a file; rows of earlier runs with the same keys give way.

    The machine and the command are kept in the file's metadata.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = {tuple(row[key] for key in keys) for row in rows}
    kept = [row for row in read(path) if tuple(row[key] for key in keys) not in new]
    columns = list(dict.fromkeys(key for row in [*kept, *rows] for key in row))
    table = pa.table({key: [row.get(key) for row in [*kept, *rows]] for key in columns})
    command = shlex.join(["python", "-m", f"jobs.benchmarks.{path.stem}", *sys.argv[1:]])
    table = table.replace_schema_metadata({"machine": machine(), "command": command})
    waiting = path.with_suffix(".tmp")
    pq.write_table(table, waiting, compression="zstd")
    waiting.replace(path)


def read(path: Path) -> list[Row]:
    return pq.read_table(path).to_pylist() if path.exists() else []


def provenance(path: Path) -> str:
    """The machine and the command, in Markdown."""
    metadata = pq.read_schema(path).metadata
    return (
        f"Measured on: {metadata[b'machine'].decode()}. Last command: "
        f"`{metadata[b'command'].decode()}`."
    )


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fill(name: str, text: str, readme: Path = README) -> None:
    """Replace what stands between a README's marks of that name."""
    first, last = f"<!-- {name}: generated -->\n", f"<!-- {name}: end -->"
    before, mark, rest = readme.read_text().partition(first)
    _, end, after = rest.partition(last)
    assert mark, f"{readme} has no line {first}"
    assert end, f"{readme} has no line {last}"
    readme.write_text(f"{before}{first}\n{text}\n\n{end}{after}")


def met(measured: float, asked: float, *, at_least: bool) -> str:
    """A measured number beside what was asked for; bold where it is missed."""
    good = measured >= asked if at_least else measured <= asked
    text = number(measured)
    return f"{text if good else f'**{text}**'} ({'≥' if at_least else '≤'} {asked:g})"


def number(value: float) -> str:
    """Three digits, in full where that is short."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
