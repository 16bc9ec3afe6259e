"""What was cut, what it cost, and how that compares at equal size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes

from shapray.report import order, wording
from shapray.report.parts import Cell, Grid, Missing, Section, num, text, with_interval
from shapray.report.plots import INK, MARKERS, MUTED, SERIES, Plot, percents, plot, segments
from shapray.report.read import Run
from shapray.report.records import Measured, Metrics, Rival, Timed
from shapray.storage import names
from shapray.text import size


@dataclass(frozen=True)
class Tile:
    """One number: of the whole network, and of what is left."""

    title: str
    before: str
    after: str
    note: str


def section(run: Run) -> Section:
    metrics = run.metrics
    content: dict[str, Any] = {
        "missing": _missing(run),
        "lead": None,
        "tiles": [],
        "grid": None,
        "plot": None,
    }
    content |= {"others": _others(run), "repair": "", "latency_note": None}
    if metrics is not None:
        content |= {
            "lead": _lead(run, metrics),
            "tiles": list(_tiles(metrics)),
            "grid": _grid(metrics),
            "plot": _plot(metrics),
            "repair": ", ".join(metrics.repair).replace("_", " ") or "none",
            "latency_note": _latency_note(metrics),
        }
    return Section("verdict", "The verdict", content)


def _missing(run: Run) -> Missing | None:
    if run.metrics is not None:
        return None
    waiting = run.record.not_done
    why = f"The run has come as far as its stage “{waiting[0]}”." if waiting else ""
    return Missing("What the cut costs", f"{names.CUTS}/{names.METRICS}", why=why)


def _lead(run: Run, metrics: Metrics) -> dict[str, Any]:
    before, cut, after = metrics.before, metrics.cut, metrics.after
    n_units = sum(table.num_rows for table in run.scores_of.values())
    kind = _kind(run)
    what = f"of the {n_units:,} {kind} that could be cut" if n_units else kind
    gone = 1 - after.multiply_adds / before.multiply_adds if before.multiply_adds else None
    ranked_by = order.ranked_by(run)
    return {
        "removed": f"{after.n_removed:,} {what}",
        "ranked_by": order.in_words(ranked_by) if ranked_by else None,
        "gone": wording.percent(gone, 0),
        "before": wording.percent(before.top1),
        "cut": wording.percent(cut.top1),
        "after": wording.percent(after.top1),
        "repaired": bool(metrics.repair),
        "low": wording.percent(after.top1_low),
        "high": wording.percent(after.top1_high),
        "n_images": wording.count(after.n_images),
        "rivals": list(_rivals(metrics)),
    }


def _rivals(metrics: Metrics) -> Iterator[Markup]:
    """Sentences about what other cuts of that size keep."""
    own = metrics.after.top1
    if metrics.random:
        top1 = _mean_top1(metrics.random)
        yield Markup("Random cuts of that size keep {} ({}).").format(
            wording.percent(top1), _compared(wording.change(own, top1))
        )
    for rival in metrics.criteria:
        said = Markup("By {} it is {}: ").format(
            wording.named(_name(rival)), wording.percent(rival.top1)
        )
        if rival.behind is None:
            yield said + _compared(wording.change(own, rival.top1)) + "."
            continue
        of = rival.behind
        less = of.difference >= 0
        ends = sorted((of.low, of.high)) if less else sorted((-of.low, -of.high))
        yield said + Markup("{} {} (95% interval {}), so {}clearly {}.").format(
            _in_points(wording.points(abs(of.difference))),
            "less" if less else "more",
            wording.between(*map(wording.points, ends)),
            "" if ends[0] > 0 else "not ",
            "worse" if less else "better",
        )


def _compared(difference: float | None) -> str:
    size = wording.signed(difference).lstrip("+−")
    return f"{_in_points(size)} {'less' if (difference or 0) <= 0 else 'more'}"


def _in_points(size: str) -> str:
    size = size.removeprefix("+")
    return f"{size} {'point' if float(size.replace('−', '-')) == 1 else 'points'}"


def _kind(run: Run) -> str:
    rows = [] if run.groups is None else run.groups.to_pylist()
    kinds = {row["kind"] for row in rows if row["status"] == "scored"}
    return "filters" if kinds == {"conv"} else "filters and neurons"


def _tiles(metrics: Metrics) -> Iterator[Tile]:
    before, after = metrics.before, metrics.after
    change = wording.signed(wording.change(before.top1, after.top1))
    yield Tile(
        "Accuracy",
        wording.percent(before.top1),
        wording.percent(after.top1),
        f"{change} percentage points",
    )
    yield Tile("Loss", wording.number(before.loss), wording.number(after.loss), "cross-entropy")
    for title, of_before, of_after in (
        ("Multiply-adds", before.multiply_adds, after.multiply_adds),
        ("Parameters", before.parameters, after.parameters),
    ):
        yield Tile(
            title, wording.short(of_before), wording.short(of_after), _less(of_before, of_after)
        )
    for whole, cut in zip(before.latency, after.latency):
        yield Tile(
            f"Latency, {wording.plural(whole.batch, 'image')}",
            f"{wording.number(whole.median_ms)} ms",
            f"{wording.number(cut.median_ms)} ms",
            _less(whole.median_ms, cut.median_ms),
        )
    yield Tile(
        "File",
        size(before.file_bytes),
        size(after.file_bytes),
        _less(before.file_bytes, after.file_bytes),
    )


def _less(before: float, after: float) -> str:
    if not before:
        return ""
    change = 1 - after / before
    return f"{wording.percent(abs(change), 0)} {'less' if change >= 0 else 'more'}"


def _grid(metrics: Metrics) -> Grid:
    batches = [of.batch for of in metrics.before.latency]
    networks: list[tuple[str, Timed]] = [("whole network", metrics.before)]
    if metrics.repair:
        networks.append(("cut, not repaired", metrics.cut))
    networks.append(("cut and repaired" if metrics.repair else "cut", metrics.after))
    rows = [
        [*_row(name, of), num(of.file_bytes, lambda n: size(int(n)))]
        + [num(one.median_ms) for one in of.latency]
        + [Cell(wording.NONE)]
        for name, of in networks
    ]
    unknown = [Cell(wording.NONE) for _ in range(1 + len(batches))]
    if metrics.random:
        rows.append([*_random_row(metrics.random), *unknown, Cell(wording.NONE)])
    for rival in metrics.criteria:
        found = rival.behind
        behind = (
            with_interval(found.difference, found.low, found.high, wording.points)
            if found
            else Cell(wording.NONE)
        )
        rows.append([*_row(_name(rival), rival), *unknown, behind])
    titles = [f"latency, {wording.plural(batch, 'image')} (ms)" for batch in batches]
    return Grid(
        "Networks, whole and cut, at equal size",
        [
            "network",
            "accuracy",
            "loss",
            "multiply-adds",
            "parameters",
            "units removed",
            "file",
            *titles,
            "behind the job's own cut (points)",
        ],
        rows,
    )


def _name(rival: Rival) -> str:
    return f"{rival.criterion} in {rival.rounds} rounds" if rival.rounds > 1 else rival.criterion


def _row(name: str, of: Measured) -> list[Cell]:
    return [
        text(wording.named(name), name),
        with_interval(of.top1, of.top1_low, of.top1_high, wording.percent),
        with_interval(of.loss, of.loss_low, of.loss_high, wording.number),
        num(of.multiply_adds, wording.short),
        num(of.parameters, wording.short),
        num(of.n_removed, wording.count),
    ]


def _mean_top1(rivals: Sequence[Rival]) -> float:
    return fmean(rival.top1 for rival in rivals)


def _random_row(rivals: Sequence[Rival]) -> list[Cell]:
    """Of several draws: the mean, and where they lie."""
    losses = [rival.loss for rival in rivals if rival.loss is not None]
    accuracies = [rival.top1 for rival in rivals]
    whole = len(losses) == len(rivals)
    return [
        text(f"random, {wording.plural(len(rivals), 'draw')}"),
        with_interval(fmean(accuracies), min(accuracies), max(accuracies), wording.percent),
        with_interval(fmean(losses), min(losses), max(losses), wording.number)
        if whole
        else Cell("not finite"),
        num(fmean(rival.multiply_adds for rival in rivals), wording.short),
        num(fmean(rival.parameters for rival in rivals), wording.short),
        num(fmean(rival.n_removed for rival in rivals), wording.count),
    ]


def _plot(metrics: Metrics) -> Plot:
    rows = [("whole", metrics.before.top1, metrics.before.top1_low, metrics.before.top1_high)]
    own = [("not repaired", metrics.cut), ("repaired", metrics.after)]
    for name, of in own if metrics.repair else [("cut", metrics.after)]:
        rows.append((name, of.top1, of.top1_low, of.top1_high))
    if metrics.random:
        found = [rival.top1 for rival in metrics.random]
        rows.append(("random", fmean(found), min(found), max(found)))
    for rival in metrics.criteria:
        rows.append((_name(rival)[:18], rival.top1, rival.top1_low, rival.top1_high))

    def draw(axes: Axes) -> None:
        for place, (name, top1, low, high) in enumerate(rows):
            y, own = -place, name in ("whole", "not repaired", "repaired", "cut")
            colour = INK if name == "whole" else SERIES[0] if own else SERIES[1]
            segments(axes, [(low, y)], [(high, y)], color=colour, linewidth=2)
            marker = "D" if name == "whole" else MARKERS[0] if own else MARKERS[1]
            axes.plot(top1, y, marker, color=colour, markersize=7)
        axes.axvline(metrics.before.top1, color=MUTED, linewidth=0.8, linestyle=":")
        axes.set_yticks([-place for place in range(len(rows))], [row[0] for row in rows])
        axes.set(xlabel="accuracy", ylim=(0.6 - len(rows), 0.6))
        percents(axes.xaxis)
        axes.grid(axis="y", visible=False)

    facts = "; ".join(f"{name} {wording.percent(top1)}" for name, top1, _, _ in rows)
    return plot(
        "verdict",
        f"Accuracy on the {wording.count(metrics.before.n_images)} evaluation images, with its 95% "
        "interval"
        + (", of random cuts the mean and range of the draws" if metrics.random else "")
        + ". The dotted line is the whole network.",
        f"Accuracy on the evaluation images: {facts}.",
        draw,
        height=60 + 24 * len(rows),
        left=14 + 6.3 * max(len(row[0]) for row in rows),
    )


def _latency_note(metrics: Metrics) -> str | None:
    for of in metrics.after.latency:
        return (
            f"Latency: median of {of.n_passes:,} passes on {of.device}, "
            f"{wording.plural(of.threads, 'thread')}; a repair does not change it."
        )
    return None


def _others(run: Run) -> Grid | None:
    """Further cuts on the same scores."""
    rows = [
        [
            text(wording.named(name), name),
            text(wording.named(of.criterion), of.criterion),
            text(", ".join(of.repair) or "none"),
            num(of.after.multiply_adds / (of.before.multiply_adds or 1), wording.percent),
            with_interval(of.after.top1, of.after.top1_low, of.after.top1_high, wording.percent),
            num(of.after.loss),
        ]
        for name, of in run.others.items()
    ]
    columns = ["cut", "criterion", "repair", "multiply-adds left", "accuracy", "loss"]
    return Grid("Further cuts of the same network", columns, rows, 3) if rows else None
