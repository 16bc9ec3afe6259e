"""The small columns of Parquet files: from files or their folders' names, of one type, selected."""

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shapray.errors import JobError

NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


def partitions(files: Sequence[str]) -> list[dict[str, Any]]:
    """Per file the columns that are names of folders in its path, as in ``split=train/0.parquet``.

    A column is of integers if all its values are, else of text; pyarrow, DuckDB and Spark do so.
    """
    found: list[dict[str, Any]] = []
    for file in files:
        pairs = [folder.partition("=") for folder in file.split("/")[:-1]]
        given = {unquote(name): value for name, equals, value in pairs if name and equals}
        found.append({n: None if v == NO_VALUE else unquote(v) for n, v in given.items()})
    for name in {name for columns in found for name in columns}:
        having = [columns for columns in found if columns.get(name) is not None]
        if all(re.fullmatch(r"-?\d{1,18}", columns[name]) for columns in having):
            for columns in having:
                columns[name] = int(columns[name])
    return found


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values instead of indices into a dictionary of them."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Of any type, nulls stay nulls."""
    if pa.types.is_string(column.type):
        return column
    values = [None if value is None else str(value) for value in column.to_pylist()]
    return pa.chunked_array([pa.array(values, pa.string())])


def joined(parts: Sequence[pa.ChunkedArray], files: Sequence[str], what: str) -> pa.ChunkedArray:
    """One column of a part per file, of the type that holds them all.

    Args:
        files: for messages.
        what: the column, for messages.
    Raises:
        JobError: there is none.
    """
    try:
        tables = [pa.table({"column": part}) for part in parts]
        return pa.concat_tables(tables, promote_options="permissive")["column"]
    except pa.ArrowException as error:
        example = {str(part.type): file for part, file in zip(parts, files, strict=True)}
        found = ", ".join(f"{kind} in {file}" for kind, file in example.items())
        raise JobError(f"{what} is of types that do not go together: {found}") from error


def equals(column: pa.ChunkedArray, wanted: str | int | bool, key: str) -> np.ndarray:
    """In which rows `wanted` is: (n_rows,) bool.

    Raises:
        JobError: in none, or the column is of another type.
    """
    try:
        equal = pc.equal(column, pa.scalar(wanted))
    except pa.ArrowNotImplementedError as error:
        raise JobError(f"{key}: the column is {column.type}; it cannot equal {wanted!r}") from error
    mask = pc.fill_null(equal, False).to_numpy()
    if not mask.any():
        found = pc.unique(column).slice(0, 8).to_pylist()
        raise JobError(f"{key}: no row has {wanted!r}; found {found}")
    return mask
