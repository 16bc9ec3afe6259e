"""Images in Parquet files: a column of encoded images."""

from collections.abc import Sequence
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shapray.config import Images
from shapray.credentials import without_credentials
from shapray.errors import JobError
from shapray.inputs.files import filesystem, opened
from shapray.inputs.listing import Listing

DEFAULT_ID_COLUMN = Images.model_fields["id_column"].default
KEPT_BYTES = 2**24  # of encoded images, per set


class ParquetReader:
    """Reads the image column a row group at a time; the last ones read are kept, two at least."""

    def __init__(self, url: str, column: str, groups: list[tuple[str, int]], starts: list[int]):
        self.url = url
        self.column = column
        self.groups = groups  # (file, row group in it), in row order
        self.starts = starts  # first row of each group, and the end
        self.cache: dict[int, pa.ChunkedArray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "cache": {}}

    def read(self, rows: Sequence[int], ids: Sequence[str]) -> list[Any]:
        images = []
        for row in rows:
            group = self._group_of(row)
            images.append(self._fetch(group)[row - self.starts[group]].as_py())
        return images

    def place(self, row: int, image_id: str) -> str:
        return f"{without_credentials(self.groups[self._group_of(row)][0])}, row {row}"

    def _group_of(self, row: int) -> int:
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def _fetch(self, group: int) -> pa.ChunkedArray:
        if group not in self.cache:
            path, index_in_file = self.groups[group]
            fs, _ = fsspec.core.url_to_fs(self.url)
            with opened(fs, path) as file:
                table = pq.ParquetFile(file).read_row_group(index_in_file, columns=[self.column])
            column = table.column(0)
            if pa.types.is_struct(column.type):  # Hugging Face: {bytes, path}
                column = pc.struct_field(column, "bytes")
            while len(self.cache) >= 2 and self._kept_bytes() + column.nbytes > KEPT_BYTES:
                del self.cache[next(iter(self.cache))]
            self.cache[group] = column
        return self.cache[group]

    def _kept_bytes(self) -> int:
        return sum(column.nbytes for column in self.cache.values())


def open_parquet(images: Images, key: str) -> Listing:
    fs, path, url = filesystem(images.path or "", key)
    if fs.isdir(path):
        files = sorted(f for f in fs.find(path) if f.endswith(".parquet"))
    else:
        files = [path] if fs.exists(path) else sorted(fs.glob(path)) or [path]
    if not files:
        raise JobError(f"{key}.path: {without_credentials(url)} holds no .parquet file")
    groups: list[tuple[str, int]] = []
    starts = [0]
    tables = []
    for name in files:
        with opened(fs, name) as file:
            try:
                parquet = pq.ParquetFile(file)
            except pa.ArrowInvalid as error:
                raise JobError(
                    f"{key}.path: {without_credentials(name)} is not a Parquet file: {error}"
                ) from error
            columns = _columns(images, parquet.schema_arrow, f"{without_credentials(name)}", key)
            for group in range(parquet.num_row_groups):
                groups.append((name, group))
                starts.append(starts[-1] + parquet.metadata.row_group(group).num_rows)
            tables.append(parquet.read(columns=columns))
    listed = pa.concat_tables(tables, promote_options="permissive")
    keep = np.ones(starts[-1], dtype=bool)
    for column, wanted in images.where.items():
        keep &= _equals(listed[column], wanted, f"{key}.where.{column}")
    rows = np.flatnonzero(keep).tolist()

    def kept(column: str | None) -> list[Any]:
        return listed[column].take(pa.array(rows, pa.int64())).to_pylist()

    ids: list[Any] = rows
    if images.id_column in listed.column_names:
        ids = kept(images.id_column)
        if None in ids:
            raise JobError(f"{key}.id_column: row {rows[ids.index(None)]} has no id (null)")
    labels = None if images.label_column is None else kept(images.label_column)
    reader = ParquetReader(url, images.image_column, groups, starts)
    return Listing(reader, rows, [str(image_id) for image_id in ids], labels)


def _columns(images: Images, schema: pa.Schema, file: str, key: str) -> list[str]:
    """The small columns to read, after checking that all that is named is there."""
    there = f"columns there: {', '.join(schema.names)}"

    def require(column: str, name: str, hint: str = "") -> None:
        if column not in schema.names:
            raise JobError(f"{key}.{name}: {file} has no column '{column}'{hint}; {there}")

    require(images.image_column, "image_column")
    kind = schema.field(images.image_column).type
    encoded = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if not encoded and not (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
        raise JobError(
            f"{key}.image_column: '{images.image_column}' of {file} is {kind}; expected encoded "
            "images (binary)"
        )
    columns = []
    if images.label_column is not None:
        require(images.label_column, "label_column", " (label_column: null for images without)")
        columns.append(images.label_column)
    if images.id_column is not None:
        if images.id_column != DEFAULT_ID_COLUMN:
            require(images.id_column, "id_column")
        if images.id_column in schema.names:
            columns.append(images.id_column)
    for column in images.where:
        require(column, "where")
        columns.append(column)
    return list(dict.fromkeys(columns))


def _equals(column: pa.ChunkedArray, wanted: str | int | bool, key: str) -> np.ndarray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    try:
        equal = pc.equal(column, pa.scalar(wanted))
    except pa.ArrowNotImplementedError as error:
        raise JobError(f"{key}: the column is {column.type}; it cannot equal {wanted!r}") from error
    mask = pc.fill_null(equal, False).to_numpy()
    if not mask.any():
        found = pc.unique(column).slice(0, 8).to_pylist()
        raise JobError(f"{key}: no row has {wanted!r}; found {found}")
    return mask
