"""The robustness benchmark's rows as tables: means with their intervals, and their ratios."""

from pathlib import Path

import numpy as np

from jobs.benchmarks.results import Row, markdown, met, number, provenance, read

SHAPLEY = ("hybrid", "sampled")  # by these estimators
DEFAULT = ("hybrid, mean", "hybrid, mean_abs")
RESAMPLES = 2000


class Orders:
    """Rows of one network; an order counts with the draws in which all groups are done."""

    def __init__(self, rows: list[Row]) -> None:
        found: dict[str, dict[int, dict[str, Row]]] = {}
        for row in rows:
            found.setdefault(row["method"], {}).setdefault(row["draw"], {})[row["group"]] = row
        self.groups = sorted({row["group"] for row in rows})
        self.methods: dict[str, np.ndarray] = {}  # (n_draws, n_groups, n_images)
        for method, of_method in found.items():
            whole = [
                [of_draw[group]["by_image"] for group in self.groups]
                for _, of_draw in sorted(of_method.items())
                if len(of_draw) == len(self.groups)
            ]
            if whole:
                self.methods[method] = np.array(whole)
        self.names = sorted(self.methods, key=self.mean)
        # Resampled are the images, the same for all methods, and the draws.
        random, n_images = np.random.default_rng(0), rows[0]["n_evaluation"]
        self.images = random.integers(n_images, size=(RESAMPLES, n_images))
        self.draws = random.random((RESAMPLES, 16))

    def mean(self, method: str, n_draws: int | None = None) -> float:
        """Of the first draws, or of all."""
        return float(self.methods[method][:n_draws].mean())

    def means(self, method: str, n_draws: int | None = None) -> np.ndarray:
        """(RESAMPLES,)"""
        values = self.methods[method][:n_draws].mean(1)  # (n_draws, n_images)
        of_draws = np.stack([v[self.images].mean(1) for v in values])  # (n_draws, RESAMPLES)
        chosen = (self.draws[:, : len(values)] * len(values)).astype(int)  # (RESAMPLES, n_draws)
        return np.take_along_axis(of_draws.T, chosen, 1).mean(1)

    def ratio(self, method: str, other: str, asked: float | None = None) -> str:
        """With its 95 % interval; by Shapley values both, on the draws that both have."""
        n = len(self.methods[method]) if other.startswith(SHAPLEY) else None
        ratio = self.mean(method) / self.mean(other, n)
        low, high = np.percentile(self.means(method) / self.means(other, n), [2.5, 97.5])
        text = number(ratio) if asked is None else met(ratio, asked, at_least=False)
        return f"{text} [{low:.2f}, {high:.2f}]"


def robustness(path: Path) -> str:
    """Markdown: the loss's increase by order and group, then what was asked for, by network."""
    rows = read(path)
    parts = [provenance(path)]
    for network in dict.fromkeys(row["network"] for row in rows):
        parts += _network(network, [row for row in rows if row["network"] == network])
    return "\n\n".join(parts)


def _network(network: str, rows: list[Row]) -> list[str]:
    orders = Orders(rows)
    lines = []
    for name in orders.names:
        low, high = np.percentile(orders.means(name), [2.5, 97.5])
        lines.append(
            [
                name,
                f"{len(orders.methods[name])}",
                f"{orders.mean(name):.3f} [{low:.2f}, {high:.2f}]",
                orders.ratio(name, "random"),
                *(f"{mean:.3f}" for mean in orders.methods[name].mean((0, 2))),
            ]
        )
    best = next(name for name in orders.names if not name.startswith((*SHAPLEY, "random")))
    ratios = [
        [
            name,
            orders.ratio(name, "random", 0.65),
            orders.ratio(name, best, 0.95),
            orders.ratio(name, name.replace("hybrid", "sampled")),
            "",
        ]
        for name in DEFAULT
    ]
    for own in DEFAULT:
        score = own.removeprefix("hybrid")
        for name in orders.names:
            if name.startswith("hybrid") and name.endswith(score) and name != own:
                by_own = orders.ratio(name, own)
                ratios.append(
                    [name, orders.ratio(name, "random"), orders.ratio(name, best), "", by_own]
                )
    return [
        f"**{network}**: increase of the cross-entropy in nats, mean over all removals, then over "
        f"groups; {rows[0]['n_calibration']} calibration images a draw, {rows[0]['n_evaluation']} "
        "evaluation images. In square brackets 95 % intervals, by resampling the evaluation images "
        "and the draws (or seeds), the same for all orders.",
        markdown(["order by", "draws", "loss increase", "÷ random", *orders.groups], lines),
        f"The best order that is not by Shapley values is {best}. Other value functions are beside "
        "minus the cross-entropy, which is the default, on the draws that they have.",
        markdown(
            [
                "order by",
                "÷ random (asked)",
                f"÷ {best} (asked)",
                "÷ sampling only",
                "÷ by minus the cross-entropy",
            ],
            ratios,
        ),
    ]
