"""Images in a folder: a folder per class, a file per image."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import fsspec

from shapray.config import Images
from shapray.credentials import without_credentials
from shapray.errors import JobError
from shapray.inputs.decode import FORMATS
from shapray.inputs.files import filesystem, find
from shapray.inputs.listing import Listing
from shapray.storage.retry import patiently

EXTENSIONS = {ending for endings in FORMATS.values() for ending in endings}


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


def open_folder(images: Images, key: str) -> Listing:
    fs, root, url = filesystem(images.path or "", key)
    if not fs.isdir(root):
        raise JobError(
            f"{key}.path: {without_credentials(url)} is a file; an image folder is expected"
        )
    found = [PurePosixPath(path[len(root) :].lstrip("/")) for path in find(fs, root)]
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
        PurePosixPath(entry["name"]).name
        for entry in fs.ls(root, detail=True)
        if entry["type"] == "directory" or (entry.get("islink") and fs.isdir(entry["name"]))
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
