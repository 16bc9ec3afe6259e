"""What the numbers are of: job, network, images, estimators, versions and time."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from markupsafe import Markup

from shapray.report import wording
from shapray.report.parts import Grid, Section, num, text
from shapray.report.read import Run, array
from shapray.report.records import Stage
from shapray.text import duration, size

Facts = Iterator[tuple[str, str | Markup]]


def section(run: Run) -> Section:
    facts = [
        ("Network", list(_network(run))),
        ("Images", list(_images(run))),
        ("Scores", list(_scores(run))),
        ("Cut", list(_cut(run))),
        ("Versions", list(_versions(run))),
    ]
    return Section(
        "provenance",
        "Where the numbers come from",
        {
            "facts": [(title, found) for title, found in facts if found],
            "stages": _stages(run),
            "failures": [
                (failed.stage, wording.named(failed.task), wording.named(failed.message))
                for failed in run.record.failures
            ],
            "not_done": run.record.not_done,
            "fingerprint": run.record.fingerprint,
        },
    )


def _said(value: Any) -> Markup:
    if isinstance(value, list | tuple):
        return Markup(", ").join(_said(one) for one in value) if value else Markup("none")
    if isinstance(value, dict):
        found = [Markup("{} {}").format(_said(name), _said(of)) for name, of in value.items()]
        return Markup(", ").join(found) if found else Markup("none")
    return wording.named(wording.NONE if value is None else str(value))


def _network(run: Run) -> Facts:
    asked, record = run.record.asked, run.record
    yield "factory", _said(asked("model", "factory"))
    if asked("model", "kwargs"):
        yield "its arguments", _said(asked("model", "kwargs"))
    yield "weights", _said(asked("model", "weights"))
    if digest := record.fingerprint_parts.get("model.weights"):
        yield "their digest", _said(str(digest)[:16])
    if record.example_shape:
        yield "an image is", " × ".join(map(str, record.example_shape[1:]))
    if record.n_classes is not None:
        yield "classes", wording.count(record.n_classes)
    if run.metrics is not None:
        yield "parameters", wording.count(run.metrics.before.parameters)
        yield "multiply-adds of an image", wording.count(run.metrics.before.multiply_adds)


def _images(run: Run) -> Facts:
    for title, key in (("calibration", "calibration"), ("evaluation", "evaluation")):
        images = run.record.asked("data", key)
        if isinstance(images, dict):
            yield f"{title} from", _said(images.get("path") or images.get("factory"))
    if run.scores is not None and run.scores.num_rows:
        yield "calibration images", wording.count(float(array(run.scores, "n_images").max()))
    if run.metrics is not None:
        yield "evaluation images", wording.count(run.metrics.before.n_images)
    if digest := run.record.fingerprint_parts.get("data.calibration"):
        yield "digest, calibration", _said(str(digest)[:16])
    if run.record.evaluation:
        yield "digest, evaluation", _said(run.record.evaluation[:16])


def _scores(run: Run) -> Facts:
    score = run.record.asked("score")
    for key in ("value", "estimator", "permutations", "exact_max_players", "target_error", "seed"):
        if isinstance(score, dict) and score.get(key) is not None:
            yield key.replace("_", " "), _said(score[key])
    if run.record.precision:
        yield "precision", _said(run.record.precision)
    if run.scores is not None and run.scores.num_rows:
        exact, images = (float(array(run.scores, name).sum()) for name in ("n_exact", "n_images"))
        yield "values that are exact", wording.percent(exact / images if images else None)
    found = run.record.stages.get("score", Stage())
    if found.evaluations:  # 0 where all shards were found done
        yield "coalitions evaluated", wording.count(found.evaluations)


def _cut(run: Run) -> Facts:
    prune = run.record.asked("prune")
    if run.metrics is not None:
        yield "target", _said(run.metrics.target)
        yield "ranked by", _said(run.metrics.criterion)
        yield "allocation", _said(run.metrics.allocation)
        yield "repair", _said(run.metrics.repair)
        yield "rounds", wording.count(run.metrics.rounds)
    elif isinstance(prune, dict):
        yield "ranked by", _said(prune.get("rank_by"))


def _versions(run: Run) -> Facts:
    for package, version in run.record.versions.items():
        if version is not None:
            yield str(wording.shown(package)), _said(version)


def _stages(run: Run) -> Grid:
    return Grid(
        "Stages of the run",
        ["stage", "state", "time", "workers", "time of all workers", "tasks", "failed", "written"],
        [
            [
                text(name.replace("_", " "), f"{place:02d}"),
                text("there already" if of.was_there else of.state),
                num(_seconds(of), lambda value: duration(value) if value is not None else "–"),
                num(of.workers, wording.count),
                num(of.worker_seconds, lambda v: duration(v) if v is not None else "–"),
                num(of.tasks, wording.count),
                num(of.tasks_failed, wording.count),
                num(of.shard_bytes, lambda v: size(int(v)) if v is not None else "–"),
            ]
            for place, (name, of) in enumerate(run.record.stages.items())
        ],
        texts=2,
    )


def _seconds(stage: Stage) -> float | None:
    try:
        start, end = (datetime.fromisoformat(at or "") for at in (stage.start, stage.end))
        return (end - start).total_seconds()
    except (ValueError, TypeError):
        return None
