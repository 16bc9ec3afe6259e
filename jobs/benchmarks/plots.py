"""Plots of the benchmarks, from the rows of their results."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from jobs.benchmarks import compared
from jobs.benchmarks.results import Row

mpl.use("Agg")
COLUMNS = 5
STYLES = {
    "shapray": ("black", "o-"),
    "shapray, hybrid": ("black", "^:"),
    "shapray, bfloat16": ("tab:purple", "*"),
    "plain antithetic": ("tab:gray", "s--"),
    "shared permutations": ("tab:red", "v-"),
    "Captum ShapleyValueSampling": ("tab:orange", "d-"),
    "shapiq permutation": ("tab:cyan", "x-"),
    "shapiq KernelSHAP, paired": ("tab:blue", "P-"),
    "shapiq SVARM, paired": ("tab:green", "+-"),
}
ORDERS = {  # of the robustness benchmark; other methods are in its table only
    "hybrid, mean": ("black", "-"),
    "hybrid, mean_abs": ("black", "--"),
    "random": ("tab:gray", "-"),
    "l1_norm": ("tab:red", ":"),
    "l2_norm": ("tab:pink", ":"),
    "batchnorm_scale": ("tab:orange", ":"),
    "apoz": ("tab:brown", "-."),
    "taylor": ("tab:blue", "-"),
    "taylor_signed": ("tab:cyan", "-"),
    "obd": ("tab:cyan", "--"),
    "jacobian": ("tab:blue", "--"),
    "leave_one_out": ("tab:purple", "-"),
    "obs": ("tab:green", "-"),
}
COMPRESSION_STYLES = {
    "default": ("black", "o-"),
    "best other": ("tab:blue", "s-"),
    "random": ("tab:orange", "v-"),
    "GRAIL": ("tab:green", "d--"),
    "BatchNorm": ("tab:purple", "x--"),
    "not repaired": ("tab:red", "+:"),
}


def _panels(rows: Iterable[Row]) -> tuple[Figure, dict[tuple[str, str], tuple[Axes, list[Row]]]]:
    of_group: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        of_group[row["network"], row["group"]].append(row)
    n_lines = -(-len(of_group) // COLUMNS)
    figure = Figure(figsize=(3.2 * COLUMNS, 2.7 * n_lines + 0.6), layout="constrained")
    axes = figure.subplots(n_lines, COLUMNS, squeeze=False).ravel()
    for unused in axes[len(of_group) :]:
        unused.set_axis_off()
    names = sorted(of_group, key=lambda key: (key[0] != "resnet20", key))
    return figure, {name: (ax, of_group[name]) for name, ax in zip(names, axes)}


def plot_estimators(rows: list[Row], folder: Path) -> None:
    """estimators_evaluations.png and estimators_seconds.png: a panel per group.

    A grey line marks the reference's own error, which is subtracted from all others.
    """
    for key, label in (("evaluations_per_image", "evaluations / image"), ("seconds", "s / image")):
        figure, panels = _panels(rows)
        for (network, group), (ax, found) in panels.items():
            n_images = min(row["n_images"] for row in found)
            for method, (color, style) in STYLES.items():
                points = defaultdict(list)
                for row in found:
                    if row["method"] == method and row["n_images"] == n_images:
                        points[row["permutations"]].append(row)
                line = [
                    (
                        np.median([row[key] for row in part])
                        / (n_images if key == "seconds" else 1),
                        np.mean([row["error"] - row["reference_error"] for row in part]),
                    )
                    for _, part in sorted(points.items())
                ]
                if line:
                    x, y = np.array(line).T
                    ax.plot(x, y, style, color=color, label=method, markersize=4, linewidth=1)
            ax.set_xscale("log", base=2 if key == "evaluations_per_image" else 10)
            ax.set(yscale="log", xlabel=label)
            if key == "evaluations_per_image":
                ax.xaxis.set_major_formatter(ScalarFormatter())
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.set_title(f"{network} {group}, {n_images} images", fontsize=9)
            lowest = [row["reference_error"] for row in found if row["n_images"] == n_images]
            if lowest[0] > 0:
                ax.axhline(lowest[0], color="lightgray", linewidth=0.8, zorder=0)
            errors = [row["error"] for row in found]
            ax.set_ylim(min(errors) / 3, min(max(errors), 30))  # a failed regression is off scale
        figure.supylabel("relative squared error", fontsize=9)
        seen = {
            label: handle
            for ax, _ in panels.values()
            for handle, label in zip(*ax.get_legend_handles_labels())
        }
        order = [method for method in STYLES if method in seen]
        handles = [seen[method] for method in order]
        figure.legend(handles, order, loc="outside upper center", ncols=5, fontsize=8)
        figure.savefig(folder / f"estimators_{key.split('_')[0]}.png", dpi=80)


def plot_throughput(rows: list[Row], folder: Path) -> None:
    """throughput.png: coalitions/s over the plain forward's, per group and precision."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    ax = figure.subplots()
    rows = [row for row in rows if row["what"] == "pairs"]
    names = list(dict.fromkeys((row["network"], row["group"]) for row in rows))
    for shift, precision in ((-0.2, "float32"), (0.2, "bfloat16")):
        heights = {
            (row["network"], row["group"]): row["ratio"]
            for row in rows
            if row["precision"] == precision
        }
        at = [i + shift for i, name in enumerate(names) if name in heights]
        ax.bar(at, [heights[name] for name in names if name in heights], 0.4, label=precision)
    ax.axhline(1, color="black", linewidth=0.8)
    labels = [f"{network}\n{group.removesuffix('.conv1')}" for network, group in names]
    ax.set_xticks(range(len(names)), labels, fontsize=7)
    ax.set(yscale="log", ylabel="coalitions/s ÷ rows/s of the plain tail forward")
    ax.legend()
    figure.savefig(folder / "throughput.png", dpi=80)


def plot_robustness(rows: list[Row], folder: Path) -> None:
    """robustness_NETWORK.png: the loss's increase against the share of a group's units that are
    gone, a panel per group, and their mean. Draws and seeds are averaged."""
    for network in dict.fromkeys(row["network"] for row in rows):
        of_group: dict[str, dict[str, np.ndarray]] = {}
        for group in sorted({row["group"] for row in rows if row["network"] == network}):
            lines = defaultdict(list)
            for row in rows:
                if (row["network"], row["group"]) == (network, group):
                    lines[row["method"]].append([0.0, *row["by_removal"]])
            of_group[group] = {method: np.mean(found, axis=0) for method, found in lines.items()}
        n_lines = -(-(len(of_group) + 1) // COLUMNS)
        figure = Figure(figsize=(3.2 * COLUMNS, 2.9 * n_lines + 0.8), layout="constrained")
        axes = figure.subplots(n_lines, COLUMNS, squeeze=False).ravel()
        for unused in axes[len(of_group) + 1 :]:
            unused.set_axis_off()
        shares = np.linspace(0, 1, 65)[:-1]
        sums: dict[str, list[np.ndarray]] = defaultdict(list)
        for ax, (group, found) in zip(axes, of_group.items()):
            for method, line in found.items():
                at = np.arange(len(line)) / len(line)
                sums[method].append(np.interp(shares, at, line))
                _draw_order(ax, at, line, method)
            ax.set_title(f"{network} {group}", fontsize=9)
        for method, parts in sums.items():
            if len(parts) == len(of_group):
                _draw_order(axes[len(of_group)], shares, np.mean(parts, axis=0), method)
        axes[len(of_group)].set_title("mean", fontsize=9)
        figure.supxlabel("share of the group's units removed", fontsize=9)
        figure.supylabel("increase of the cross-entropy (nats)", fontsize=9)
        seen = {
            label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels())
        }
        order = [method for method in ORDERS if method in seen]
        handles = [seen[method] for method in order]
        figure.legend(handles, order, loc="outside upper center", ncols=7, fontsize=8)
        figure.savefig(folder / f"robustness_{network}.png", dpi=80)


def _draw_order(ax: Axes, shares: np.ndarray, line: np.ndarray, method: str) -> None:
    if method in ORDERS:
        colour, style = ORDERS[method]
        width = 1.8 if colour == "black" else 1.0
        ax.plot(shares, line, style, color=colour, label=method, linewidth=width)


def plot_compression(rows: list[Row], folder: Path) -> None:
    """compression.png: accuracy and loss against multiply-adds, a line of panels per network.

    Of the criteria the default, the best other and a random one, repaired by least squares; of the
    default's cuts also GRAIL's repair, at its best, and none.
    """
    networks = sorted({row["network"] for row in rows if row["share"] < 1})
    figure = Figure(figsize=(9, 3.6 * len(networks)), layout="constrained")
    axes = figure.subplots(len(networks), 2, squeeze=False)
    for network, of_network in zip(networks, axes):
        found = compared.curves([row for row in rows if row["network"] == network])
        [whole] = [r for r in rows if r["network"] == network and r["repair"] == "whole"]
        for ax, key, label in zip(of_network, ("top1", "loss"), ("top-1", "cross-entropy, nats")):
            for name, line in found.items():
                color, style = COMPRESSION_STYLES[name.partition(":")[0]]
                x = [point["multiply_adds"] / 1e6 for point in line]
                y = [point[key] for point in line]
                ax.plot(x, y, style, color=color, label=name, markersize=4, linewidth=1)
            size = whole["multiply_adds"] / 1e6
            ax.plot(size, whole[key], "*", color="black", markersize=9, label="whole network")
            ax.set(xlabel="million multiply-adds", ylabel=label, title=network)
            ax.grid(color="lightgray", linewidth=0.5)
        of_network[1].set_yscale("log")
        of_network[1].set_yticks([1, 2, 5, 10], minor=False)
        of_network[1].yaxis.set_major_formatter(ScalarFormatter())
        of_network[1].yaxis.set_minor_formatter(NullFormatter())
        of_network[0].legend(fontsize=7)
    figure.savefig(folder / "compression.png", dpi=80)
