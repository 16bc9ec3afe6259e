"""Another cut on scores that are there already: no scoring, and no Ray."""

import functools
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import pyarrow.compute as pc
from pydantic import ValidationError
from rich.console import Console

from shapray.cluster.start import open_pool
from shapray.config import Job, explain
from shapray.config.load import override
from shapray.credentials import is_hidden
from shapray.driver import summary
from shapray.driver.crew import Crew
from shapray.driver.cutting import Cutting
from shapray.driver.failures import nothing_failed
from shapray.driver.fingerprint import check_same_job, comparable, fingerprint_parts
from shapray.driver.inputs import open_inputs
from shapray.driver.plan import plan
from shapray.driver.prices import check_taken
from shapray.driver.progress import group_meter
from shapray.driver.record import earlier_run, now
from shapray.driver.reporting import show_report
from shapray.errors import JobError
from shapray.inputs.digest import digest
from shapray.storage import names
from shapray.storage.claim import claimed
from shapray.storage.run_directory import RunDirectory
from shapray.worker.worker import Worker

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=+,-]*")


def prune_again(run_dir: str, overrides: Sequence[str], name: str | None, console: Console) -> None:
    """Cut, repair and measure, into ``prune/NAME/`` of a run directory.

    Args:
        run_dir: any fsspec URL.
        overrides: ``section.key=value``, over the job in ``run.json``.
        name: of the cut; by default what is overridden.
    Raises:
        JobError: no scores there, or a value is wrong; nothing has been written then.
        TasksFailed, StorageError, ClaimLost: see there.
    """
    store = RunDirectory(run_dir)
    job, n_rounds = _job(store, run_dir, overrides)
    if store.read(names.SCORES) is None:
        raise JobError(
            f"{store.shown}/{names.SCORES}: no such file; python -m shapray.run JOB.yaml makes the "
            "scores, and goes on where it was stopped"
        )
    folder = _folder(store, name or _name(overrides))
    inputs = open_inputs(job, store)
    earlier = earlier_run(store)
    assert earlier is not None
    there, here = earlier.parts, fingerprint_parts(inputs, earlier.precision)
    check_same_job(comparable(there, here), comparable(here, there), store.shown)
    check_taken(job, store, inputs.calibration, inputs.evaluation)
    if job.data.calibration.limit == "auto":  # the others took part in nothing
        n_images = pc.max(store.read_table(names.SCORES)["n_images"]).as_py()
        inputs = replace(inputs, calibration=inputs.calibration.first(n_images))
    with group_meter(console, len(inputs.groups)) as progress:
        planned = plan(inputs, progress)
    scored = set(store.read_table(names.SCORES)["group"].to_pylist())
    missing = [group.name for group in planned.setup.groups if group.name not in scored]
    if missing:
        raise JobError(
            f"{store.shown}/{names.SCORES}: no scores of group '{missing[0]}', which the job names"
        )
    if n_rounds > 1:
        console.print(
            f"{store.shown} was cut in {n_rounds} rounds; this cut is made in one, by the whole "
            "network's scores"
        )
    started = now()
    make = functools.partial(Worker, planned.setup)
    with claimed(store), open_pool(make, job.cluster, in_process=True) as pool:
        console.print(f"{job.name}: {pool.description}; files go to {store.shown}/{folder}")
        crew, fingerprint = Crew(pool, console, None), digest(earlier.parts)
        cutting = Cutting(crew, planned, planned.chooser, folder, nothing_failed, fingerprint)
        cutting.targets.check()
        ranked = cutting.ranked(cutting.with_criteria(store.read_table(names.SCORES)))
        compared = cutting.cuts(ranked, cutting.losses(ranked))
        facts: dict[str, Any] = {"started": started, "shapray": version("shapray")}
        metrics = cutting.measured(compared, facts)
        facts |= {"prune": job.prune.model_dump(mode="json"), "ended": now()}
        store.publish_json(f"{folder}/{names.CUT}", facts)
    summary.show_cuts(console, metrics)
    summary.show_all(console, store)
    show_report(store, console)


def _job(store: RunDirectory, run_dir: str, overrides: Sequence[str]) -> tuple[Job, int]:
    """The job of ``run.json``, with other values and one round; and the rounds that it had."""
    found = store.read_json(names.RUN)
    if found is None or not isinstance(found.get("job"), dict):
        raise JobError(
            f"{store.shown}/{names.RUN}: no such file; is this the output folder of a run?"
        )
    tree = found["job"]
    pruned = tree.get("prune")
    n_rounds = pruned.pop("rounds", 1) if isinstance(pruned, dict) else 1
    if isinstance(tree.get("score"), dict):
        tree["score"].pop("target_standard_error", None)  # versions before 0.6 knew it
    for assignment in overrides:
        if assignment.partition("=")[0] == "output":
            raise JobError(
                f"{assignment}: a cut stays beside the scores that it is made by; --name says in "
                f"which folder below {store.shown}/prune"
            )
        override(tree, assignment)
    tree["output"] = run_dir
    kwargs = (tree.get("model") or {}).get("kwargs") or {}
    hidden = [key for key, value in kwargs.items() if is_hidden(value)]
    if hidden:
        raise JobError(
            f"{store.shown}/{names.RUN} does not hold model.kwargs.{hidden[0]}, which could be a "
            f"credential; give it again: model.kwargs.{hidden[0]}=..."
        )
    try:
        job = Job.model_validate(tree)
    except ValidationError as error:
        raise JobError(
            f"{store.shown}/{names.RUN}, with {', '.join(overrides) or 'nothing replaced'}:\n"
            + explain(error, Job)
        ) from error
    if job.prune.rounds > 1:
        raise JobError(
            f"prune.rounds: {job.prune.rounds}; further rounds need scores of smaller networks, "
            "and nothing is scored here; give it to python -m shapray.run: with the same output it "
            "reads these scores, and its cut takes the place of the run's own"
        )
    return job, n_rounds


def _name(overrides: Sequence[str]) -> str:
    said = [text.removeprefix("prune.") for text in overrides]
    return re.sub(r"[^A-Za-z0-9_.=+,-]+", "", ",".join(said)).lstrip("_.=+,-")[:80] or "again"


def _folder(store: RunDirectory, name: str) -> str:
    if NAME.fullmatch(name) is None:
        raise JobError(f"--name: '{name}'; letters, digits and _ . = + , - make a name")
    folder, n = names.folder_of(name), 1
    while store.read(f"{folder}/{names.PLAN}") is not None:  # earlier ones stay
        n += 1
        folder = names.folder_of(f"{name}-{n}")
    return folder
