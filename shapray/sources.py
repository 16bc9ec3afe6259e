"""Where images come from: Parquet, an image folder, or a data set object.

Each ``open_*`` reads what is needed to choose images (ids, labels) and returns a `Listing`, whose
reader fetches the pixels later: readers are small, picklable, and keep no file open.
"""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import index
from pathlib import PurePosixPath
from typing import Any, Protocol

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .config import Images, JobError
from .credentials import without_credentials
from .model import import_callable
from .retry import passes, patiently

DEFAULT_ID_COLUMN = Images.model_fields["id_column"].default
KEPT_BYTES = 2**24  # of encoded images, per set
EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"}


class Reader(Protocol):
    """Fetches images by their row and id in the source."""

    def read(self, rows: Sequence[int], ids: Sequence[str]) -> list[Any]:
        """The images: encoded bytes, PIL images, arrays or tensors."""

    def place(self, row: int, image_id: str) -> str:
        """Where an image lies, for messages."""


@dataclass(frozen=True)
class Listing:
    """All images of a source: `rows` are their places in it, for the reader."""

    reader: Reader
    rows: Sequence[int]
    ids: list[str]
    labels: list[Any] | None


def open_source(images: Images, key: str) -> Listing:
    """List the images of a job's section.

    Args:
        images: the section.
        key: its name in the job, for messages.
    Raises:
        JobError: nothing there, no such column, a factory that fails.
    """
    kinds = {"parquet": _open_parquet, "imagefolder": _open_folder}
    return patiently(lambda: kinds.get(images.source, _open_dataset)(images, key))


def _filesystem(url: str, key: str) -> tuple[Any, str, str]:
    """(file system, path in it, URL that means the same in every process's current folder)"""
    if "://" not in url and "::" not in url:
        url = os.path.abspath(os.path.expanduser(url))
    try:
        fs, path = fsspec.core.url_to_fs(url)
        try:
            fs.info(path)
        except FileNotFoundError as error:
            if passes(error) or not fs.glob(path):  # to HTTP every refusal is one of these
                raise
    except FileNotFoundError as error:
        raise JobError(f"{key}.path: {without_credentials(url)}: no such file or folder") from error
    except Exception as error:  # no rights, unknown protocol, no driver: each its own kinds
        raise JobError(without_credentials(f"{key}.path: cannot open {url}: {error}")) from error
    return fs, path.rstrip("/"), url


class _PatientFile(io.RawIOBase):
    """A file that is read in parts, each asked for again by itself while the storage stumbles: of
    many requests some always fail, and all of them would have to be made again."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self.file.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self.file.seek(offset, whence))

    def read(self, size: int = -1) -> bytes:
        start = self.tell()

        def again() -> bytes:
            self.file.seek(start)
            return bytes(self.file.read(size))

        return patiently(again)


@contextmanager
def _opened(fs: Any, path: str) -> Iterator[_PatientFile]:
    with patiently(lambda: fs.open(path, "rb")) as file:
        yield _PatientFile(file)


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
            with _opened(fs, path) as file:
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


def _open_parquet(images: Images, key: str) -> Listing:
    fs, path, url = _filesystem(images.path or "", key)
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
        with _opened(fs, name) as file:
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


class FolderReader:
    """Reads files below `url`; an image's id is its path there."""

    def __init__(self, url: str):
        self.url = url

    def read(self, rows: Sequence[int], ids: Sequence[str]) -> list[Any]:
        fs, root = fsspec.core.url_to_fs(self.url)
        paths = [f"{root.rstrip('/')}/{image_id}" for image_id in ids]
        found: dict[str, bytes] = {}

        def fetch() -> None:
            missing = [path for path in paths if path not in found]
            # all at once on object stores
            contents = dict(zip(missing, fs.cat_ranges(missing, None, None)))
            found.update((p, c) for p, c in contents.items() if not isinstance(c, Exception))
            for content in contents.values():
                if isinstance(content, Exception):
                    raise content

        patiently(fetch)
        return [found[path] for path in paths]

    def place(self, row: int, image_id: str) -> str:
        return f"{without_credentials(self.url).rstrip('/')}/{image_id}"


def _open_folder(images: Images, key: str) -> Listing:
    fs, root, url = _filesystem(images.path or "", key)
    if not fs.isdir(root):
        raise JobError(
            f"{key}.path: {without_credentials(url)} is a file; an image folder is expected"
        )
    found = [PurePosixPath(path[len(root) :].lstrip("/")) for path in fs.find(root)]
    paths = sorted(
        path
        for path in found
        if path.suffix.lower() in EXTENSIONS
        and not any(part.startswith(".") for part in path.parts)
    )
    ids = [str(path) for path in paths]
    if images.label_column is None:
        return Listing(FolderReader(url), range(len(ids)), ids, None)
    loose = [image_id for path, image_id in zip(paths, ids) if len(path.parts) == 1]
    if loose:
        raise JobError(
            f"{key}.path: {without_credentials(url)}: {len(loose)} images lie in no class folder, "
            f"e.g. {loose[0]}; a folder per class is expected "
            "(label_column: null for images without)"
        )
    folders = [
        PurePosixPath(entry["name"]).name for entry in fs.ls(root, detail=True) if _is_folder(entry)
    ]
    classes = sorted(folder for folder in folders if not folder.startswith("."))
    filled = {path.parts[0] for path in paths}
    empty = [folder for folder in classes if folder not in filled]
    if empty:
        raise JobError(
            f"{key}.path: {without_credentials(url)}: class folder '{empty[0]}' holds no image "
            f"({', '.join(sorted(EXTENSIONS))}); {len(empty)} of {len(classes)} folders are empty"
        )
    label_of = {folder: label for label, folder in enumerate(classes)}
    labels = [label_of[path.parts[0]] for path in paths]
    return Listing(FolderReader(url), range(len(ids)), ids, labels)


def _is_folder(entry: dict[str, Any]) -> bool:
    # a class folder may be a link to one
    return entry["type"] == "directory" or os.path.isdir(entry["name"])


class DatasetReader:
    """Reads items of a sequence that a factory builds, once per process."""

    def __init__(self, factory: str, kwargs: dict[str, Any], key: str):
        self.factory = factory
        self.kwargs = kwargs
        self.key = key
        self.built: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "built": None}

    def dataset(self) -> Any:
        if self.built is None:
            factory = import_callable(self.factory, f"{self.key}.factory")
            call = f"{self.factory}(**{without_credentials(self.kwargs)})"
            try:
                self.built = factory(**self.kwargs)
            except Exception as error:  # the user's code: whatever it says is the message
                raise JobError(
                    f"{self.key}.factory: {call} failed: {without_credentials(f'{error}')}"
                ) from error
            if not (hasattr(self.built, "__len__") and hasattr(self.built, "__getitem__")):
                raise JobError(
                    f"{self.key}.factory: {call} gave a {type(self.built).__name__}; a sequence "
                    "of images, or of (image, label), is expected"
                )
        return self.built

    def item(self, row: int) -> Any:
        """Raises JobError if the user's data set fails."""
        dataset = self.dataset()
        try:
            return dataset[row]
        except Exception as error:  # the user's code: whatever it says is the message
            cause = without_credentials(f"{type(error).__name__}: {error}")
            raise JobError(
                f"{self.key}.factory: item {row} of what {self.factory} made (a "
                f"{type(dataset).__name__} of {len(dataset)}) cannot be read: {cause}"
            ) from error

    def read(self, rows: Sequence[int], ids: Sequence[str]) -> list[Any]:
        items = [self.item(row) for row in rows]
        return [item[0] if isinstance(item, (tuple, list)) else item for item in items]

    def place(self, row: int, image_id: str) -> str:
        return f"{self.factory}, item {row}"


def _open_dataset(images: Images, key: str) -> Listing:
    kwargs = dict(images.kwargs)
    factory = images.factory or ""
    if images.source == "torchvision":
        factory = factory if ":" in factory else f"torchvision.datasets:{factory}"
        if isinstance(kwargs.get("root"), str):
            kwargs["root"] = os.path.abspath(os.path.expanduser(kwargs["root"]))
    reader = DatasetReader(factory, kwargs, key)
    dataset = reader.dataset()
    n_images = len(dataset)
    ids = [str(row) for row in range(n_images)]
    if images.label_column is None or n_images == 0:
        return Listing(reader, range(n_images), ids, None)
    targets = getattr(dataset, "targets", None) if images.source == "torchvision" else None
    if targets is None or len(targets) != n_images:
        items = (reader.item(row) for row in range(n_images))
        targets = [item[1] if isinstance(item, (tuple, list)) else None for item in items]
    if all(target is None for target in targets):
        return Listing(reader, range(n_images), ids, None)
    labels = [index(t) if hasattr(t, "__index__") else t for t in targets]
    return Listing(reader, range(n_images), ids, labels)
