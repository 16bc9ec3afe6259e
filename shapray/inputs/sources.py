"""Where images come from, by the job's key."""

from shapray.config import Images
from shapray.inputs.dataset import open_dataset
from shapray.inputs.folder import open_folder
from shapray.inputs.listing import Listing
from shapray.inputs.parquet import open_parquet
from shapray.storage.retry import patiently


def open_source(images: Images, key: str) -> Listing:
    """List the images of a job's section.

    Args:
        images: the section.
        key: its name in the job, for messages.
    Raises:
        JobError: nothing there, no such column, a factory that fails.
    """
    kinds = {"parquet": open_parquet, "imagefolder": open_folder}
    return patiently(lambda: kinds.get(images.source, open_dataset)(images, key))
