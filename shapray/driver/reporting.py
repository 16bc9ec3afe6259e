"""The page at the end of a run."""

from rich.console import Console

from shapray.report.page import publish_report
from shapray.storage.run_directory import RunDirectory


def show_report(store: RunDirectory, console: Console) -> None:
    """Write ``report.html`` and say where it is, or why there is none: a page that cannot be made
    is no reason for a run to fail that has its results."""
    try:
        console.print(f"the report: {publish_report(store)}")
    except Exception as error:
        console.print(
            f"there is no new report ({type(error).__name__}: {error}); python -m shapray.report "
            f"{store.shown} makes one"
        )
