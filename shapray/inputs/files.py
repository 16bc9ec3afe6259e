"""Files at any fsspec URL, read with patience."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from shapray.credentials import without_credentials
from shapray.errors import JobError
from shapray.storage.retry import passes, patiently


def filesystem(url: str, key: str) -> tuple[Any, str, str]:
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


def find(fs: Any, root: str) -> list[str]:
    """Paths of all files below a folder; unlike in fsspec, links to folders are followed, though
    not in circles."""
    if not isinstance(fs, LocalFileSystem):
        return list(fs.find(root))
    files = []
    above = {root: {os.path.realpath(root)}}  # folder -> the folders that it lies in, and itself
    for folder, folders, names in os.walk(root, followlinks=True):
        files += [f"{folder}/{name}" for name in names]
        for name in list(folders):
            path = f"{folder}/{name}"
            real = os.path.realpath(path)
            above[path] = above[folder] | {real}
            if real in above[folder]:
                folders.remove(name)
    return files


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
def opened(fs: Any, path: str) -> Iterator[_PatientFile]:
    with patiently(lambda: fs.open(path, "rb")) as file:
        yield _PatientFile(file)
