"""What every column of a run's tables holds, from the columns themselves."""

from collections.abc import Mapping

import pyarrow as pa

_COLUMNS = ("table", "column", "type", "unit", "meaning")


def glossary(tables: Mapping[str, pa.Schema]) -> pa.Table:
    """A row per column: table, column, type, unit, meaning, all text."""
    rows = [
        {
            "table": table,
            "column": field.name,
            "type": str(field.type),
            "unit": _said(field, b"unit"),
            "meaning": _said(field, b"meaning"),
        }
        for table, columns in tables.items()
        for field in columns
    ]
    return pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in _COLUMNS]))


def described(columns: pa.Schema, known: pa.Schema) -> pa.Schema:
    """A table's columns as they are, with what is known of those that do not say it themselves:
    files of earlier versions do not."""
    return pa.schema(
        [
            known.field(field.name).with_nullable(field.nullable).with_type(field.type)
            if field.name in known.names and not _said(field, b"meaning")
            else field
            for field in columns
        ]
    )


def _said(field: pa.Field, what: bytes) -> str:
    return (field.metadata or {}).get(what, b"").decode()
