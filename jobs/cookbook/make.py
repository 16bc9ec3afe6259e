"""Asks a finished run the questions of the cookbook and writes them, with the answers, into its
README, between the two markers.

python -m jobs.cookbook.make RUN_DIR
"""

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

import shapray
from jobs.cookbook.queries import QUERIES, Query

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- queries -->\n", "<!-- end of the queries -->\n"


def main() -> None:
    (run_dir,) = sys.argv[1:]
    connection = shapray.tables(run_dir).duckdb()
    before, rest = README.read_text().split(BEGIN)
    _, after = rest.split(END)
    parts = (_section(place, query, connection) for place, query in enumerate(QUERIES, 1))
    README.write_text(before + BEGIN + "".join(parts) + "\n" + END + after)


def _section(place: int, query: Query, connection: Any) -> str:
    answer = markdown(connection.sql(query.sql).to_arrow_table())
    return (
        f"\n## {place}. {query.question}\n\n```sql\n{query.sql.strip()}\n```\n\n{answer}\n\n"
        f"{query.note}\n"
    )


def markdown(table: pa.Table) -> str:
    """A table's rows, numbers to the right; what is null is left empty."""
    ends = ["--:" if _is_number(field.type) else "---" for field in table.schema]
    rows = [["" if v is None else str(v) for v in row.values()] for row in table.to_pylist()]
    lines = [table.column_names, ends, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


if __name__ == "__main__":
    main()
