"""What a source of images is: ids, labels, and a reader that fetches the pixels later."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


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
