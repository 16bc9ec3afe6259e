"""Tasks that failed for good: what stops a run, and what is said of them."""

from collections.abc import Sequence

from shapray.cluster.pool import Failure
from shapray.driver.record import Record
from shapray.errors import JobError, TasksFailed

# Stages whose tasks' results are kept, each for itself.
PIECEMEAL = ("score", "criterion", "losses", "explain")


def nothing_failed(stage: str, failures: Sequence[Failure]) -> None:
    for failure in sorted(failures, key=lambda failure: not failure.is_job_error):
        if failure.is_job_error:
            raise JobError(failure.message)
        raise TasksFailed(f"{stage}: {failure.message}\n{failure.traceback}")


def stop_if_failed(stage: str, failures: list[Failure], record: Record) -> None:
    if failures:
        record.set_aside(stage, failures)
        shown = sorted(failures, key=lambda failure: str(failure.task))[:20]
        lines = [f"  {failure.task}: {failure.message}" for failure in shown]
        if len(failures) > len(shown):
            lines.append(f"  and {len(failures) - len(shown)} more")
        again = "what was done is kept, and the same command does only the rest"
        if stage not in PIECEMEAL:
            again = (
                "scores, criteria, losses and explanations of groups are kept, and the same "
                "command does this stage anew"
            )
        raise TasksFailed(
            f"stage {stage}: {len(failures)} task{'s' * (len(failures) > 1)} failed (tracebacks "
            f"in {record.store.shown}/run.json); {again}:\n" + "\n".join(lines)
        )
