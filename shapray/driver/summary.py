"""What a finished run says: what was scored, what removing units cost, where the files are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.console import Console
from rich.table import Table

from shapray.driver import picture
from shapray.driver.plan import Plan
from shapray.storage import names
from shapray.storage.certainty import Certainty, in_words, median, percent
from shapray.storage.run_directory import RunDirectory

_SHOWN = (
    ("accuracy", "top1", "{:.2%}"),
    ("loss", "loss", "{:.4f}"),
    ("removed", "n_removed", "{:,.0f}"),
    ("parameters", "parameters", "{:,.0f}"),
    ("multiply-adds", "multiply_adds", "{:,.0f}"),
)


@dataclass
class Totals:
    """Sums over all shards of a run, whenever they were computed."""

    n_values: int = 0
    n_exact: int = 0  # values, not images
    n_evaluations: int = 0

    def add(self, shard: pa.Table) -> None:
        per_image = pc.list_value_length(shard["shapley_value"]).to_numpy()
        exact = pc.equal(shard["estimator"], "exact").to_numpy()
        self.n_values += int(per_image.sum())
        self.n_exact += int(per_image[exact].sum())
        self.n_evaluations += pc.sum(shard["n_evaluations"]).as_py()


def show(
    console: Console,
    plan: Plan,
    totals: Totals,
    certainties: Sequence[Certainty],
    metrics: dict[str, Any],
) -> None:
    """Print the two tables, the picture of the cut and the run directory.

    Args:
        certainties: of the groups' scores.
    """
    store, scored = plan.setup.store, plan.setup.groups
    excluded = [group for group in plan.groups if group.reason is not None]
    facts = Table(box=box.SIMPLE, show_header=False)
    facts.add_column(style="bold")
    facts.add_column(justify="right")
    facts.add_row("groups scored", str(len(scored)))
    facts.add_row("groups excluded", str(len(excluded)))
    facts.add_row("units", f"{sum(group.n_units for group in scored):,}")
    facts.add_row("calibration images", f"{len(plan.setup.calibration):,}")
    several = plan.chooser.prune.rounds > 1
    first = ", round 1" * several  # the others' are in rounds/N/run.json
    facts.add_row("exact values" + first, f"{totals.n_exact / totals.n_values:.1%}")
    facts.add_row("evaluations" + first, f"{totals.n_evaluations:,}")
    if several:
        facts.add_row("rounds", str(plan.chooser.prune.rounds))
    sure = median(certainties)
    facts.add_row("total error of a score" + first, percent(sure.total))
    facts.add_row("  from the images", percent(sure.images))
    facts.add_row("  from the sampling", percent(sure.sampling))
    console.print(facts)
    console.print(
        "errors are relative to the spread of a group's scores, median over the groups; "
        + in_words(sure, len(plan.setup.calibration))
    )
    show_cuts(console, metrics)
    picture.show_cut(console, plan)
    console.print(f"all files are in {store.shown}")


def show_cuts(console: Console, metrics: dict[str, Any]) -> None:
    """The whole network, the cut one, the repaired one and its rivals of the same size."""
    n_rounds = metrics["rounds"]
    cut = f"cut in {n_rounds} rounds" if n_rounds > 1 else "cut"
    rows = {"whole": [metrics["before"]], cut: [metrics["cut"]]}
    if metrics["repair"]:
        rows["repaired"] = [metrics["after"]]
    if metrics["random"]:
        rows[f"random ({len(metrics['random'])})"] = metrics["random"]
    own = metrics["criterion"]
    rows |= {
        "in one round" if found["criterion"] == own else found["criterion"]: [found]
        for found in metrics["criteria"]
    }
    table = Table(box=box.SIMPLE)
    table.add_column("", style="bold")
    for title, _, _ in _SHOWN:
        table.add_column(title, justify="right")
    for name, found in rows.items():
        table.add_row(name, *(_mean([one[key] for one in found], form) for _, key, form in _SHOWN))
    console.print(table)
    n_images, low, high = (metrics["after"][key] for key in ("n_images", "top1_low", "top1_high"))
    console.print(
        f"{n_images:,} evaluation images; 95 % interval of the accuracy after: {low:.2%} to "
        f"{high:.2%}"
    )
    for whole, after in zip(metrics["before"]["latency"], metrics["after"]["latency"]):
        console.print(
            f"a pass of {whole['batch']}: {whole['median_ms']:.3g} ms whole, "
            f"{after['median_ms']:.3g} ms after, median of {whole['n_passes']} on "
            f"{whole['device']}, threads: {whole['threads']}"
        )


def show_all(console: Console, store: RunDirectory) -> None:
    """A line for every cut of a run directory."""
    table = Table(box=box.SIMPLE)
    for title in ("cut", "criterion", "repair", "multiply-adds", "accuracy", "loss"):
        table.add_column(
            title, justify="left" if title in ("cut", "criterion", "repair") else "right"
        )
    for name in (None, *store.folders(names.CUTS)):
        metrics = store.read_json(f"{names.folder_of(name)}/{names.METRICS}")
        if metrics is None or "repair" not in metrics:
            continue
        after, n_rounds = metrics["after"], metrics.get("rounds", 1)  # version 0.3 knew but one
        table.add_row(
            name or "the run's own",
            metrics["criterion"] + (f" in {n_rounds} rounds" if n_rounds > 1 else ""),
            ", ".join(metrics["repair"]) or "none",
            f"{after['multiply_adds'] / metrics['before']['multiply_adds']:.1%}",
            f"{after['top1']:.2%}",
            _mean([after["loss"]], "{:.4f}"),
        )
    console.print(table)


def _mean(values: list[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return form.format(np.mean(known)) if len(known) == len(values) else "not finite"
