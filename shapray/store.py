"""The run directory: where each file lies, what its columns are, and how it is published.

A file is written whole or not at all: its bytes are made in memory, then put under the final name
in one step (object stores), or written beside it and renamed (local folders). A shard carries the
run's fingerprint and is checked in full before it is used, so that one torn, foreign or outdated
is found, named and computed anew.
"""

import contextlib
import errno
import io
import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from shapray.config import JobError
from shapray.credentials import without_credentials
from shapray.retry import patiently

GROUPS = pa.schema(
    [
        pa.field("group", pa.string(), nullable=False),
        pa.field("n_units", pa.int64(), nullable=False),
        pa.field("modules", pa.list_(pa.string()), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("flat", pa.bool_(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("tail_macs", pa.int64()),
    ]
)
SHARD = pa.schema(
    [
        pa.field("group", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("label", pa.int64()),
        pa.field("n_active", pa.int32(), nullable=False),
        pa.field("estimator", pa.string(), nullable=False),
        pa.field("n_evaluations", pa.int64(), nullable=False),
        pa.field("n_permutations", pa.int32(), nullable=False),
        pa.field("value_all", pa.float64(), nullable=False),
        pa.field("value_none", pa.float64(), nullable=False),
        pa.field("shapley_value", pa.list_(pa.float32()), nullable=False),
        pa.field("standard_error", pa.list_(pa.float32()), nullable=False),
        pa.field("active", pa.list_(pa.bool_()), nullable=False),
    ]
)
_STATISTICS = [
    pa.field("mean", pa.float64(), nullable=False),
    pa.field("mean_abs", pa.float64(), nullable=False),
    pa.field("std", pa.float64()),
    pa.field("standard_error", pa.float64()),
    pa.field("n_images", pa.int64(), nullable=False),
    pa.field("n_exact", pa.int64(), nullable=False),
    pa.field("active_fraction", pa.float64(), nullable=False),
]
_UNIT = [
    pa.field("group", pa.string(), nullable=False),
    pa.field("unit", pa.int64(), nullable=False),
]
SCORES = pa.schema([*_UNIT, *_STATISTICS])
CLASS_SCORES = pa.schema([*_UNIT, pa.field("label", pa.int64(), nullable=False), *_STATISTICS])
CURVE = pa.schema(
    [
        pa.field("criterion", pa.string(), nullable=False),
        pa.field("ratio", pa.float64(), nullable=False),
        pa.field("removed_fraction", pa.float64(), nullable=False),
        pa.field("seed", pa.int64()),
        pa.field("top1", pa.float64(), nullable=False),
        pa.field("loss", pa.float64(), nullable=False),
        pa.field("parameters", pa.int64(), nullable=False),
        pa.field("multiply_adds", pa.int64(), nullable=False),
    ]
)

_FINGERPRINT, _GROUP, _ROWS = b"shapray.fingerprint", b"shapray.group", b"shapray.rows"


class StorageError(OSError):
    """The run directory cannot be read or written; the message names the file and the cause."""


class UnsoundShard(ValueError):
    """A shard that must not be used; the message says why."""


def shard_path(group: str, first: int, last: int) -> str:
    """Where the shard of images ``first`` up to but not including ``last`` of `group` lies.

    The group's name is percent-encoded, so it can neither leave its folder nor add one.
    """
    return f"shards/group={quote(group, safe='')}/images-{first:06d}-{last:06d}.parquet"


class RunDirectory:
    """One run's files, on any fsspec file system. Cheap to send to another process.

    Args:
        url: local folder or fsspec URL; a relative folder is taken from the current one.
    Raises:
        JobError: no such file system, or what it needs is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            # A listing that s3fs remembers hides from it what workers have written since.
            self.fs, root = url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise JobError(
                f"output: '{without_credentials(url)}' is not a folder or URL that fsspec "
                f"can open ({error}); right is a folder, s3://... (s3fs), gs://... (gcsfs)"
            ) from error
        self.root: str = self.fs._strip_protocol(root).rstrip("/")
        local = isinstance(self.fs, LocalFileSystem)
        self.shown: str = self.root if local else without_credentials(url)

    @property
    def shared(self) -> bool:
        """Whether other processes see what is written (``memory://`` is this process's own)."""
        protocol = self.fs.protocol
        return "memory" not in ((protocol,) if isinstance(protocol, str) else protocol)

    def publish(self, path: str, data: bytes) -> None:
        """Put `data` under `path` (relative), whole or not at all; replaces what was there.

        Raises:
            StorageError: names the file and the cause.
        """
        target = f"{self.root}/{path}"
        try:
            if isinstance(self.fs, LocalFileSystem):
                patiently(lambda: _publish_local(target, data))
            else:
                patiently(lambda: self.fs.pipe_file(target, data))
        except Exception as error:  # each file system raises its own kinds
            raise self._failed("write", path, error) from error

    def create(self, path: str, data: bytes) -> bool:
        """Put `data` under `path` if nothing is there; returns whether it was put.

        One of several that try at once succeeds, on local folders and on stores with conditional
        writes (S3, GCS); elsewhere two may.

        Raises:
            StorageError: names the file and the cause.
        """
        target = f"{self.root}/{path}"
        try:
            if isinstance(self.fs, LocalFileSystem):
                patiently(lambda: _publish_local(target, data, _link))
            else:
                patiently(lambda: self.fs.pipe_file(target, data, mode="create"))
        except FileExistsError:
            return False
        except Exception as error:
            raise self._failed("write", path, error) from error
        return True

    def remove(self, path: str) -> None:
        """Delete the file `path`, and the run directory's folder if it was the last in it."""
        try:
            patiently(lambda: self.fs.rm_file(f"{self.root}/{path}"))
            if isinstance(self.fs, LocalFileSystem) and not os.listdir(self.root):
                os.rmdir(self.root)
        except FileNotFoundError:
            return
        except Exception as error:
            raise self._failed("delete", path, error) from error

    def read(self, path: str) -> bytes | None:
        """The bytes under `path`, None if there is no such file.

        Raises:
            StorageError: it cannot be read for another cause than that it is not there.
        """
        try:
            return patiently(lambda: self.fs.cat_file(f"{self.root}/{path}"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:
            raise self._failed("read", path, error) from error

    def _failed(self, verb: str, path: str, error: Exception) -> StorageError:
        cause = without_credentials(str(error)) or type(error).__name__
        return StorageError(f"cannot {verb} {self.shown}/{path}: {type(error).__name__}: {cause}")

    def publish_json(self, path: str, value: Any) -> None:
        self.publish(path, (json.dumps(value, indent=2) + "\n").encode())

    def read_json(self, path: str) -> Any:
        """The value under `path`, None if there is no such file.

        Raises:
            JobError: the file is not JSON, so it is not one of ours.
        """
        data = self.read(path)
        try:
            return None if data is None else json.loads(data)
        except ValueError as error:
            raise JobError(f"output: {self.shown}/{path} is not JSON: {error}") from error

    def publish_table(self, path: str, tables: Iterable[pa.Table], schema: pa.Schema) -> int:
        """Publish `tables` as one Parquet file, a row group each; returns its size in bytes."""
        buffer = io.BytesIO()
        # Page checksums let a reader notice bytes that flipped on the way or at rest.
        with pq.ParquetWriter(
            buffer, schema, compression="zstd", write_page_checksum=True
        ) as writer:
            for table in tables:
                writer.write_table(table.cast(schema))
        data = buffer.getvalue()
        self.publish(path, data)
        return len(data)

    def read_table(self, path: str) -> pa.Table:
        """Raises StorageError if the file is not there or is not Parquet."""
        data = self.read(path)
        if data is None:
            raise StorageError(f"{self.shown}/{path}: no such file")
        try:
            return pq.read_table(io.BytesIO(data), page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise self._failed("read", path, error) from error

    def publish_shard(
        self, group: str, first: int, last: int, table: pa.Table, fingerprint: str
    ) -> int:
        """Publish the rows of images ``first`` up to ``last`` of `group`; returns the bytes."""
        assert table.num_rows == last - first, (table.num_rows, first, last)
        schema = SHARD.with_metadata(
            {
                _FINGERPRINT: fingerprint.encode(),
                _GROUP: group.encode(),
                _ROWS: str(table.num_rows).encode(),
            }
        )
        return self.publish_table(shard_path(group, first, last), [table], schema)

    def list_shards(self) -> set[str]:
        """Relative paths of all that lies under ``shards/`` with a shard's ending."""
        try:
            found = patiently(lambda: self.fs.find(f"{self.root}/shards"))
        except FileNotFoundError:
            return set()
        except Exception as error:
            raise self._failed("list", "shards", error) from error
        names = (str(path)[len(self.root) + 1 :] for path in found)
        return {name for name in names if re.search(r"/images-\d+-\d+\.parquet$", name)}

    def read_shard(
        self, group: str, n_units: int, first: int, image_ids: Sequence[str], fingerprint: str
    ) -> pa.Table:
        """The shard of the images `image_ids`, which begin at `first`, after checking it in full.

        Raises:
            UnsoundShard: absent, torn, changed bytes, or of another group, cut, set of images or
                fingerprint; the message says which.
        """
        path = shard_path(group, first, first + len(image_ids))
        data = self.read(path)
        if data is None:
            raise UnsoundShard("it is not there")
        try:
            file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
            metadata = file.schema_arrow.metadata or {}
            table = file.read()
        except Exception as error:  # damaged bytes make Arrow raise almost anything
            raise UnsoundShard(f"it is torn or damaged ({str(error).splitlines()[0]})") from error
        _check_shard(table, metadata, group, n_units, image_ids, fingerprint)
        return table


def _check_shard(
    table: pa.Table,
    metadata: Mapping[bytes, bytes],
    group: str,
    n_units: int,
    image_ids: Sequence[str],
    fingerprint: str,
) -> None:
    found = metadata.get(_FINGERPRINT, b"").decode(errors="replace")
    if found != fingerprint:
        raise UnsoundShard(
            f"its fingerprint is {found[:12] or 'missing'}, this run's is {fingerprint[:12]}"
        )
    if metadata.get(_GROUP) != group.encode():
        raise UnsoundShard(f"it is of group {metadata.get(_GROUP, b'(none)').decode()!r}")
    if not table.schema.equals(SHARD):
        raise UnsoundShard(f"its columns are {table.schema.names}, with other names or types")
    if not table.num_rows == len(image_ids) == int(metadata.get(_ROWS, b"-1")):
        raise UnsoundShard(f"it has {table.num_rows} rows; it should have {len(image_ids)}")
    if table["image_id"].to_pylist() != list(image_ids) or set(table["group"].to_pylist()) != {
        group
    }:
        raise UnsoundShard("its rows are of other images or of another group")
    for column in ("shapley_value", "standard_error", "active"):
        lengths = set(pc.list_value_length(table[column]).to_pylist())
        if lengths != {n_units}:
            raise UnsoundShard(f"{column} has {sorted(lengths)} entries; the group has {n_units}")


def _publish_local(target: str, data: bytes, put: Callable[[str, str], None] = os.replace) -> None:
    folder, name = os.path.split(target)
    os.makedirs(folder, exist_ok=True)
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        put(temporary, target)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _link(temporary: str, target: str) -> None:
    """Name a file, if the name is free."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.ENOSYS}:
            raise
        if os.path.exists(target):  # a file system without hard links
            raise FileExistsError(target) from error
        os.replace(temporary, target)
