"""``run.json``: what a run was made of and how far it is, kept current."""

import contextlib
import json
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from shapray.cluster.pool import Failure
from shapray.config import Job
from shapray.credentials import HIDDEN, recordable, without_credentials
from shapray.driver.inputs import class_names
from shapray.driver.plan import Plan
from shapray.errors import JobError, StorageError
from shapray.inputs.digest import digest
from shapray.storage import names
from shapray.storage.claim import Claim, ClaimLost
from shapray.storage.run_directory import RunDirectory

STAGES_OF_A_ROUND = ("plan", "score", "aggregate", "prune")
STAGES = (*STAGES_OF_A_ROUND, "evaluate", "explain")
REFRESH_SECONDS = 10.0  # between publications while a stage goes on
_PACKAGES = ("shapray", "torch", "torchvision", "ray", "pyarrow", "fsspec")


@dataclass(frozen=True)
class Earlier:
    """What an earlier run of a directory left in ``run.json``.

    Attributes:
        parts: of its fingerprint.
        limit: `data.calibration.limit` of its job.
        evaluation: digest of its evaluation images.
    """

    parts: dict[str, Any]
    evaluation: str
    limit: int | str | None

    @property
    def precision(self) -> str:
        return self.parts["score.precision"]


def earlier_run(store: RunDirectory) -> Earlier | None:
    """What ``run.json`` says of an earlier run, None if there was none.

    Raises:
        JobError: the file is damaged or is not one of this program's.
        StorageError: it cannot be read.
    """
    found = store.read_json(names.RUN)
    if found is None:
        return None
    match found:
        case {"fingerprint_parts": dict(parts), "evaluation": str(evaluation)}:
            if parts.get("score.precision") in ("float32", "tf32", "bfloat16"):
                images = found.get("job", {}).get("data", {}).get("calibration", {})
                return Earlier(parts, evaluation, images.get("limit"))
    raise JobError(
        f"output: {store.shown}/run.json is damaged or not one of this program's: it should hold "
        "'fingerprint_parts' with a 'score.precision' of float32, tf32 or bfloat16, and "
        "'evaluation'; write to another folder, or delete that one to start over"
    )


class Record:
    """The content of ``run.json``; published whole at every change, and at times between.

    Args:
        stages: that there will be.
    """

    def __init__(
        self,
        store: RunDirectory,
        job: Job,
        claim: Claim,
        started: str,
        stages: Sequence[str] = STAGES,
    ) -> None:
        self.store, self.claim = store, claim
        self.published = time.monotonic()
        self.content: dict[str, Any] = {
            "name": job.name,
            "job": _job_json(job),
            "started": started,
            "versions": {"python": platform.python_version()}
            | {package: _version(package) for package in _PACKAGES},
            "stages": {
                name: {"state": "waiting"}
                for name in stages
                if name != "explain" or job.explain.images
            },
            "failures": [],
        }

    def planned_in(self, seconds: float) -> None:
        """Write down what it took to open the inputs and to find and check the groups."""
        self.content["planning"] = {"seconds": round(seconds, 3)}

    def describe(
        self, plan: Plan, notes: Sequence[str], precision: str, parts: dict[str, Any]
    ) -> str:
        """Write down what the job's inputs turned out to be; returns the fingerprint."""
        fingerprint = digest(parts)
        self.content |= {
            "fingerprint": fingerprint,
            "fingerprint_parts": parts,
            "precision": precision,
            "model_notes": list(notes),
            "evaluation": plan.setup.evaluation.digest(),
            "example_shape": list(plan.example.shape),
            "n_classes": plan.n_classes,
            "class_names": class_names(
                plan.setup.job, plan.n_classes, plan.setup.calibration, plan.setup.evaluation
            ),
        }
        return fingerprint

    def publish(self) -> None:
        """Raises ClaimLost if the run directory is another driver's by now, StorageError."""
        self.claim.check()
        self.store.publish_json(names.RUN, self.content)
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


def _job_json(job: Job) -> dict[str, Any]:
    """The job without credentials, from which its network can be built again all the same.

    A keyword argument of the factory that JSON would change (a mapping by number, a date) is
    hidden, too, rather than given back as something else.
    """
    content = without_credentials(job.model_dump(mode="json"))
    kwargs = recordable(job.model.kwargs)
    content["model"] |= {
        "factory": job.model.factory,
        "kwargs": {
            name: value if json.loads(json.dumps(value, default=str)) == value else HIDDEN
            for name, value in kwargs.items()
        },
    }
    return content


def _version(package: str) -> str | None:
    """None for one that runs from its source, or is not needed after all."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def now() -> str:
    """UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
