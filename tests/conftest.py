"""What holds for every test, and the Ray and the run that tests share."""

import functools
from pathlib import Path

import pytest
import ray
import torch
from tiny import start_ray, write_job

from shapray.pruning.latency import compared_latency
from shapray.run import main
from shapray.storage.run_directory import RunDirectory
from shapray.worker import cutter

torch.set_num_threads(1)  # the networks are tiny: threads only get into each other's way


@pytest.fixture(scope="session", autouse=True)
def _latencies_of_few_passes():
    """A run in this process does not spend seconds on timing its networks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutter, "compared_latency", functools.partial(compared_latency, seconds=0.0))
        yield


@pytest.fixture(scope="session", autouse=True)
def _ray_ends_with_the_tests():
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def shared_ray():
    """A Ray of 3 CPUs in this process: the first module that needs one starts it, and leaves it
    to the next."""
    if not ray.is_initialized():
        start_ray(num_cpus=3)


@pytest.fixture(scope="module")
def no_ray():
    """This process has no Ray, before or after: for tests with one of their own."""
    ray.shutdown()
    yield
    ray.shutdown()


@pytest.fixture
def in_process(monkeypatch):
    """A run's worker is this process, as with ``memory://``, though its files are in a folder."""
    monkeypatch.setattr(RunDirectory, "shared", False)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The run directory of an undisturbed run with its worker in this process; only to be read."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, "shared", False)
        assert main([str(write_job(folder)), "prune.export=[pt2]", "explain.images=8"]) == 0
    return folder / "out"
