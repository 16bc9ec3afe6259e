"""Which job a run directory belongs to: everything that changes a score."""

import json
from collections.abc import Mapping
from typing import Any

from shapray.credentials import recordable
from shapray.driver.inputs import Inputs
from shapray.driver.prices import taken_at_first
from shapray.errors import JobError
from shapray.inputs.digest import weights_digest
from shapray.shapley.estimators import SAMPLING_VERSION
from shapray.storage.schemas import TABLE_FORMAT


def fingerprint_parts(inputs: Inputs, precision: str) -> dict[str, Any]:
    """Everything that changes a score, by the job's key; its digest is the run's fingerprint.

    `score.groups` is not in it: a shard belongs to one group, whichever others are scored. Nor is
    the content of images that are not taken at first (`prices.check_taken` knows of it).
    """
    job, n_images = inputs.job, len(inputs.calibration)
    output = {} if job.model.output is None else {"model.output": job.model.output}
    score = job.score.model_dump(mode="json", exclude={"groups", "precision"})
    return {
        "model.factory": job.model.factory,
        "model.kwargs": recordable(job.model.kwargs),
        **output,
        "model.weights": weights_digest(inputs.model),
        "data.calibration": inputs.calibration.digest(taken_at_first(job, n_images)),
        **{f"score.{key}": value for key, value in score.items()},
        "score.precision": precision,
        "cluster.images_per_task": job.cluster.images_per_task,
        "table_format": TABLE_FORMAT,
        "sampling_version": SAMPLING_VERSION,
    }


def comparable(parts: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a fingerprint that tell two jobs apart, by whatever version each was written."""
    versions = {"table_format", "sampling_version"}
    return {key: parts[key] for key in parts.keys() & others.keys() - versions}


def check_same_job(found: Mapping[str, Any], parts: Mapping[str, Any], where: str) -> None:
    """The run directory's fingerprint parts, as read, are those of this job.

    Raises:
        JobError: names every setting that differs.
    """
    parts = json.loads(json.dumps(parts, default=str))  # as they would be read
    differing = [
        f"  {key}: {_short(found.get(key))} there, {_short(parts.get(key))} here"
        for key in sorted({*found, *parts})
        if found.get(key) != parts.get(key)
    ]
    if differing:
        raise JobError(
            f"output: {where} belongs to another job; these differ:\n"
            + "\n".join(differing)
            + "\nwrite to another folder, or delete that one to start over"
        )


def _short(value: Any) -> str:
    text = str(value)
    return f"digest {text[:12]}" if len(text) == 64 else text
