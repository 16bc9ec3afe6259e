"""What the tests of whole runs share."""

from pathlib import Path

import pytest
from tiny import write_job

from shapray.run import main
from shapray.storage.run_directory import RunDirectory


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The run directory of an undisturbed run with its worker in this process; only to be read."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, "shared", False)
        assert main([str(write_job(folder)), "prune.export=[pt2]", "explain.images=8"]) == 0
    return folder / "out"
