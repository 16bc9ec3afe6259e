"""Draws accuracy and loss against the share of units removed, from a finished run.

python jobs/plot_curve.py RUN_DIRECTORY PICTURE.png
"""

import sys

import matplotlib

matplotlib.use("Agg")
import fsspec
import matplotlib.pyplot as plt
import pyarrow.parquet as pq


def draw(run: str, picture: str) -> None:
    """The plan's line, and the random draws' mean with the range between their extremes."""
    with fsspec.open(f"{run.rstrip('/')}/prune/curve.parquet") as file:
        rows = pq.read_table(file).to_pylist()
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, key, title in zip(axes, ("top1", "loss"), ("accuracy", "cross-entropy"), strict=True):
        planned = [row for row in rows if row["criterion"] == "shapley"]
        drawn = [row for row in rows if row["criterion"] == "random"]
        x = [row["removed_fraction"] for row in planned]
        ratios = sorted({row["ratio"] for row in rows})
        draws = [[row[key] for row in drawn if row["ratio"] == ratio] for ratio in ratios]
        n_seeds = len(draws[0])
        axis.fill_between(
            x,
            [min(d) for d in draws],
            [max(d) for d in draws],
            color="tab:gray",
            alpha=0.25,
            label=f"random, range of {n_seeds}",
        )
        axis.plot(x, [sum(d) / n_seeds for d in draws], color="tab:gray", label="random, mean")
        axis.plot(
            x, [row[key] for row in planned], "o-", color="tab:blue", label="lowest Shapley values"
        )
        axis.set_xlabel("share of units removed")
        axis.set_title(title)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    draw(sys.argv[1], sys.argv[2])
