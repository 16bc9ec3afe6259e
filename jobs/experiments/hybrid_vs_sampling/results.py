"""Results of the experiment: a Parquet file a piece, so that a run goes on where it was, and
several processes can share the seeds."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.benchmarks.networks import machine
from jobs.experiments.hybrid_vs_sampling.cuts import Row

HERE = Path(__file__).parent
RESULTS = HERE / "results"
README = HERE / "README.md"


def read(folder: Path) -> list[Row]:
    """The rows of all pieces, in the order of their names."""
    return [row for path in sorted(folder.glob("*.parquet")) for row in read_piece(path)]


def read_piece(path: Path) -> list[Row]:
    return pq.read_table(path).to_pylist()


def write_piece(path: Path, rows: Sequence[Row]) -> None:
    """All rows or none; the machine and the command go to the file's metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = pa.table({key: [row.get(key) for row in rows] for key in columns})
    command = shlex.join(["python", "-m", __package__, *sys.argv[1:]])
    table = table.replace_schema_metadata({"machine": machine(), "command": command})
    waiting = path.with_suffix(".tmp")
    pq.write_table(table, waiting, compression="zstd")
    waiting.replace(path)


def fill(name: str, text: str) -> None:
    """Replace what stands between the README's marks of that name."""
    first, last = f"<!-- {name}: generated -->\n", f"<!-- {name}: end -->"
    before, mark, rest = README.read_text().partition(first)
    _, end, after = rest.partition(last)
    assert mark, f"{README} has no line {first}"
    assert end, f"{README} has no line {last}"
    README.write_text(f"{before}{first}\n{text}\n\n{end}{after}")
