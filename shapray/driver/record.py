"""``run.json``: which job a run directory belongs to and how far it is, kept current."""

import contextlib
import platform
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from shapray.cluster.pool import Failure
from shapray.config import Job
from shapray.credentials import without_credentials
from shapray.driver.plan import Plan
from shapray.errors import StorageError
from shapray.inputs.digest import digest
from shapray.storage.claim import Claim, ClaimLost
from shapray.storage.run_directory import RunDirectory

STAGES = ("plan", "score", "aggregate", "prune", "evaluate")
REFRESH_SECONDS = 10.0  # between publications while a stage goes on
_PACKAGES = ("shapray", "torch", "torchvision", "ray", "pyarrow", "torch-pruning", "fsspec")


class Record:
    """The content of ``run.json``; published whole at every change, and at times between."""

    def __init__(self, store: RunDirectory, job: Job, claim: Claim, started: str) -> None:
        self.store, self.claim = store, claim
        self.published = time.monotonic()
        self.content: dict[str, Any] = {
            "name": job.name,
            "job": without_credentials(job.model_dump(mode="json")),
            "started": started,
            "versions": {"python": platform.python_version()}
            | {package: version(package) for package in _PACKAGES},
            "stages": {name: {"state": "waiting"} for name in STAGES},
            "failures": [],
        }

    def describe(self, plan: Plan, precision: str, parts: dict[str, Any]) -> str:
        """Write down what the job's inputs turned out to be; returns the fingerprint."""
        fingerprint = digest(parts)
        self.content |= {
            "fingerprint": fingerprint,
            "fingerprint_parts": parts,
            "precision": precision,
            "evaluation": plan.setup.evaluation.digest(),
            "example_shape": list(plan.example.shape),
            "n_classes": plan.n_classes,
        }
        return fingerprint

    def publish(self) -> None:
        """Raises ClaimLost if the run directory is another driver's by now, StorageError."""
        self.claim.check()
        self.store.publish_json("run.json", self.content)
        self.published = time.monotonic()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Published as running, then as done, or failed if an exception leaves the block.

        Yields:
            the stage's entry, to which facts may be added.
        """
        entry = self.content["stages"][name]
        entry.update(state="running", start=now())
        self.publish()
        try:
            yield entry
        except BaseException:
            entry.update(state="failed", end=now())
            # The exception that is on its way matters more than one of the storage.
            with contextlib.suppress(StorageError, ClaimLost):
                self.publish()
            raise
        entry.update(state="done", end=now())
        self.publish()

    def keep_current(self) -> None:
        """Publish what a running stage has come to, every few seconds at most.

        A storage that stumbles here is no reason to stop: the next tasks or the next change of a
        stage will tell.
        """
        if time.monotonic() - self.published > REFRESH_SECONDS:
            with contextlib.suppress(StorageError):
                self.publish()
            self.published = time.monotonic()

    def set_aside(self, stage: str, failures: Sequence[Failure]) -> None:
        """Keep the tasks that failed for good, with their tracebacks."""
        self.content["failures"] += [
            {
                "stage": stage,
                "task": str(failure.task),
                "message": without_credentials(failure.message),
                "traceback": without_credentials(failure.traceback),
            }
            for failure in failures
        ]


def now() -> str:
    """UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
