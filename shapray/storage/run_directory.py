"""The run directory: how a file is published and read.

A file is written whole or not at all: its bytes are made in memory, then put under the final name
in one step (object stores), or written beside it and renamed (local folders)."""

import contextlib
import copy
import errno
import io
import json
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from shapray.credentials import without_credentials
from shapray.errors import JobError, StorageError
from shapray.storage.retry import patiently


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
        except Exception as error:  # some connect at once; each raises its own kinds
            cause = without_credentials(str(error)) or type(error).__name__
            raise JobError(
                f"output: '{without_credentials(url)}' is not a folder or URL that fsspec "
                f"can open ({cause}); right is a folder, s3://... (s3fs), gs://... (gcsfs)"
            ) from error
        self.root: str = self.fs._strip_protocol(root).rstrip("/")
        local = isinstance(self.fs, LocalFileSystem)
        self.shown: str = self.root if local else without_credentials(url)

    def within(self, folder: str) -> "RunDirectory":
        """A folder of this one, for files as of a run."""
        inner = copy.copy(self)
        inner.root, inner.shown = f"{self.root}/{folder}", f"{self.shown}/{folder}"
        return inner

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
            raise self.failed("write", path, error) from error

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
            raise self.failed("write", path, error) from error
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
            raise self.failed("delete", path, error) from error

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
            raise self.failed("read", path, error) from error

    def folders(self, path: str) -> list[str]:
        """Names of the folders right below a folder, sorted; none if there is no such folder.

        Raises:
            StorageError: it cannot be listed.
        """
        return self._listed(path, "directory")

    def files(self, path: str) -> list[str]:
        """The same of the files."""
        return self._listed(path, "file")

    def _listed(self, path: str, kind: str) -> list[str]:
        try:
            found = patiently(lambda: self.fs.ls(f"{self.root}/{path}".rstrip("/"), detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except Exception as error:
            raise self.failed("list", path, error) from error
        return sorted(
            entry["name"].rstrip("/").rpartition("/")[2] for entry in found if entry["type"] == kind
        )

    def failed(self, verb: str, path: str, error: Exception) -> StorageError:
        cause = without_credentials(str(error)) or type(error).__name__
        return StorageError(f"cannot {verb} {self.shown}/{path}: {type(error).__name__}: {cause}")

    def publish_json(self, path: str, value: dict[str, Any]) -> None:
        """Publish an object; what JSON does not know, such as a date in a job, as its text."""
        self.publish(path, (json.dumps(value, indent=2, default=str) + "\n").encode())

    def read_json(self, path: str) -> dict[str, Any] | None:
        """The object under `path`, None if there is no such file.

        Raises:
            JobError: the file is not JSON, or is no object, so it is not one of ours.
        """
        data = self.read(path)
        if data is None:
            return None
        try:
            found = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise JobError(f"{self.shown}/{path} is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise JobError(
                f"{self.shown}/{path} holds {type(found).__name__} {str(found)[:40]!r}, not a JSON "
                "object: it is not one of this program's"
            )
        return found

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

    def read_table(
        self,
        path: str,
        columns: Sequence[str] | None = None,
        where: pc.Expression | None = None,
    ) -> pa.Table:
        """A table, or some columns and rows of it: then little more than these is read.

        Raises:
            StorageError: the file is not there, is not Parquet or is damaged.
        """
        target, whole = f"{self.root}/{path}", columns is None and where is None

        def read() -> pa.Table:
            with io.BytesIO(self.fs.cat_file(target)) if whole else self.fs.open(target) as file:
                return pq.read_table(
                    file,
                    columns=None if columns is None else list(columns),
                    filters=where,
                    page_checksum_verification=True,
                )

        try:
            return patiently(read)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StorageError(f"{self.shown}/{path}: no such file") from error
        except Exception as error:  # damaged bytes make Arrow raise almost anything
            raise self.failed("read", path, error) from error


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
