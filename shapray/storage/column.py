"""A column of a table, with what it holds in words: the glossary and every Parquet file take it
from here."""

import pyarrow as pa


def column(
    name: str, kind: pa.DataType, meaning: str, unit: str = "", *, nullable: bool = True
) -> pa.Field:
    """A field whose metadata says what it holds.

    Args:
        meaning: one or two sentences.
        unit: of numbers: "images", "value" (that of the job's value function, nats for a
            cross-entropy), "share", "multiply-adds"; empty where there is none.
    """
    metadata = {"meaning": meaning, "unit": unit}
    return pa.field(name, kind, nullable=nullable, metadata=metadata)
