"""Images in Parquet files: a column of encoded images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shapray.config import Images
from shapray.credentials import without_credentials
from shapray.errors import JobError
from shapray.inputs.columns import as_text, equals, joined, partitions, plain
from shapray.inputs.files import filesystem, find, opened
from shapray.inputs.listing import Listing

DEFAULT_ID_COLUMN = Images.model_fields["id_column"].default
KEPT_BYTES = 2**24  # of encoded images, per set


class ParquetReader:
    """Reads the image column a row group at a time; the last ones read are kept, two at least.

    Args:
        url: of the file system.
        column: of encoded images.
        groups: (file, row group in it), in row order.
        starts: first row of each group, and the end.
        key: where the column was named, for messages.
    """

    def __init__(
        self, url: str, column: str, groups: list[tuple[str, int]], starts: list[int], key: str
    ) -> None:
        self.url = url
        self.column = column
        self.groups = groups
        self.starts = starts
        self.key = key
        self.cache: dict[int, pa.ChunkedArray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "cache": {}}

    def read(self, rows: Sequence[int], ids: Sequence[str]) -> list[Any]:
        """Raises JobError where there is no image in a row."""
        images = []
        for row, image_id in zip(rows, ids, strict=True):
            group = self._group_of(row)
            image = self._fetch(group)[row - self.starts[group]].as_py()
            if isinstance(image, dict):  # Hugging Face: {bytes, path}
                path, image = image.get("path"), image["bytes"]
                if image is None and path is not None:
                    raise JobError(
                        f"{self.key}: {self.place(row, image_id)} holds no image: its bytes are "
                        f"null, only a path is stored ('{path}'); embed the files"
                    )
            if image is None:
                raise JobError(f"{self.key}: {self.place(row, image_id)} has no image (null)")
            images.append(image)
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
            column = table[self.column]
            while len(self.cache) >= 2 and self._kept_bytes() + column.nbytes > KEPT_BYTES:
                del self.cache[next(iter(self.cache))]
            self.cache[group] = column
        return self.cache[group]

    def _kept_bytes(self) -> int:
        return sum(column.nbytes for column in self.cache.values())


def open_parquet(images: Images, key: str) -> Listing:
    fs, path, url = filesystem(images.path or "", key)
    if fs.isdir(path):
        files = sorted(f for f in find(fs, path) if f.endswith(".parquet"))
    else:
        files = [path] if fs.exists(path) else sorted(fs.glob(path)) or [path]
    if not files:
        raise JobError(f"{key}.path: {without_credentials(url)} holds no .parquet file")
    shown = [f"{without_credentials(file)}" for file in files]
    named = [images.label_column, images.id_column, *images.where]
    parts: dict[str, list[pa.ChunkedArray]] = {name: [] for name in named if name is not None}
    groups: list[tuple[str, int]] = []
    starts = [0]
    has_ids = False
    for file, in_words, in_path in zip(files, shown, partitions(files), strict=True):
        with opened(fs, file) as content:
            try:
                parquet = pq.ParquetFile(content)
            except pa.ArrowInvalid as error:
                raise JobError(f"{key}.path: {in_words} is not a Parquet file: {error}") from error
            _check_columns(images, parquet.schema_arrow, in_path, in_words, key)
            for group in range(parquet.num_row_groups):
                groups.append((file, group))
                starts.append(starts[-1] + parquet.metadata.row_group(group).num_rows)
            table = parquet.read(columns=[n for n in parquet.schema_arrow.names if n in parts])
        n_rows = parquet.metadata.num_rows
        for name, found in parts.items():
            repeated = pa.chunked_array([pa.array([in_path.get(name)] * n_rows)])
            found.append(table[name] if name in table.column_names else repeated)
        has_ids |= images.id_column in {*table.column_names, *in_path}

    def column(name: str, read: Callable[[pa.ChunkedArray], pa.ChunkedArray]) -> pa.ChunkedArray:
        return joined([read(part) for part in parts[name]], shown, f"{key}: column '{name}'")

    keep = np.ones(starts[-1], dtype=bool)
    for name, value in images.where.items():
        keep &= equals(column(name, plain), value, f"{key}.where.{name}")
    rows = np.flatnonzero(keep)
    ids = [str(row) for row in rows]
    if images.id_column is not None and has_ids:
        ids = column(images.id_column, as_text).take(pa.array(rows)).to_pylist()
        if None in ids:
            raise JobError(f"{key}.id_column: row {rows[ids.index(None)]} has no id (null)")
    labels = None
    if images.label_column is not None:
        labels = column(images.label_column, plain).take(pa.array(rows)).to_pylist()
    reader = ParquetReader(url, images.image_column, groups, starts, f"{key}.image_column")
    return Listing(reader, rows.tolist(), ids, labels)


def _check_columns(
    images: Images, schema: pa.Schema, in_path: Mapping[str, Any], file: str, key: str
) -> None:
    """All columns that are named are there, and that of images holds encoded ones."""
    there = [*schema.names, *in_path]

    def require(column: str | None, name: str, among: Sequence[str], hint: str = "") -> None:
        if column is not None and column not in among:
            raise JobError(
                f"{key}.{name}: {file} has no column '{column}'{hint}; columns there: "
                f"{', '.join(there)}"
            )

    require(images.image_column, "image_column", schema.names)
    kind = schema.field(images.image_column).type
    if not _is_encoded(kind):
        raise JobError(
            f"{key}.image_column: '{images.image_column}' of {file} is {kind}; expected encoded "
            "images (binary)"
        )
    require(images.label_column, "label_column", there, " (label_column: null for images without)")
    if images.id_column != DEFAULT_ID_COLUMN:
        require(images.id_column, "id_column", there)
    for column in images.where:
        require(column, "where", there)


def _is_encoded(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:  # Hugging Face
        kind = kind.field("bytes").type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)
