"""Where the command writes: names, paths and reasons are shown as they are."""

import sys
from typing import IO, Any

from rich.console import Console
from rich.text import Text

from shapray.text import shown


class PlainConsole(Console):
    """A console to which every string is text, whoever gave it.

    Brackets are no markup and colons no emoji codes, in tables too; what a terminal would obey or
    what its encoding lacks is shown as an escape.

    Args:
        file: None for standard output.
        options: others of rich's.
    """

    def __init__(self, file: IO[str] | None = None, **options: Any) -> None:
        super().__init__(
            file=file or sys.stdout, markup=False, emoji=False, highlight=False, **options
        )

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(shown(text, self.encoding), **options)
