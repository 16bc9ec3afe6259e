"""A whole run directory without a network: numbers that could be, in all tables."""

import io
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from shapray.storage import names, schemas
from shapray.storage.explained import TABLES
from shapray.storage.run_directory import RunDirectory

SIZES = {"conv1": 12, "layer1.0.conv1": 16, "layer2.0.conv1": 32, "fc1": 24}
CLASSES = ("airplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
OTHERS = ("activation", "active_fraction", "l1_norm", "taylor", "leave_one_out", "unrepaired")
N_CARDS, N_PICTURES = 3, 3  # of each end; of each direction
PRICES = (2, 8, 32)


def simulated_run(
    url: str,
    sizes: Mapping[str, int] = SIZES,
    class_names: Sequence[str] = CLASSES,
    side: int = 32,
    name: str = "simulated",
    n_cards: int = N_CARDS,
    n_classes: int | None = None,
) -> RunDirectory:
    """Publish every file that a report reads.

    Args:
        side: of the pictures, in pixels.
        n_classes: where the classes have no names.
    """
    store, rng = RunDirectory(url), np.random.default_rng(0)
    labels = range(n_classes or len(class_names))
    scores = {group: _scores(rng, n) for group, n in sizes.items()}
    removed = {g: np.argsort(s["mean_abs"])[: len(s["mean"]) // 3] for g, s in scores.items()}
    store.publish_json(names.RUN, record(name, list(class_names), len(labels)))
    store.publish_table(names.GROUPS, [groups_table(sizes)], schemas.GROUPS)
    criteria = pa.schema([pa.field("taylor", pa.float64())])
    schema = pa.unify_schemas([schemas.SCORES, criteria])
    tables = [_table(_score_rows(group, s), schema) for group, s in scores.items()]
    store.publish_table(names.SCORES, tables, schema)
    by_class = [_class_scores(rng, group, s, labels) for group, s in scores.items()]
    store.publish_table(names.CLASS_SCORES, by_class, schemas.CLASS_SCORES)
    n_units, n_removed = sum(sizes.values()), sum(map(len, removed.values()))
    plan = {g: {"n_units": n, "removed": sorted(map(int, removed[g]))} for g, n in sizes.items()}
    store.publish_json(f"{names.CUTS}/{names.PLAN}", {"format": 1, "groups": plan})
    store.publish_json(f"{names.CUTS}/{names.METRICS}", metrics(n_removed))
    curve = pa.Table.from_pylist(_curve(n_units), schema=schemas.CURVE)
    store.publish_table(f"{names.CUTS}/{names.CURVE}", [curve], schemas.CURVE)
    for table, rows in _explained(rng, scores, removed, labels, side, n_cards).items():
        found = pa.Table.from_pylist(rows, schema=TABLES[table])
        store.publish_table(names.explained(table), [found], TABLES[table])
    return store


def record(name: str, class_names: list[str], n_classes: int) -> dict[str, Any]:
    images = {"source": "parquet", "path": "data/calibration.parquet", "limit": 256}
    stage = {"state": "done", "start": "2026-01-02T03:04:05.000+00:00"}
    stages = {
        stage_name: stage | {"end": f"2026-01-02T03:0{5 + place}:05.000+00:00"}
        for place, stage_name in enumerate(("plan", "score", "aggregate", "prune", "evaluate"))
    }
    stages["score"] |= {"workers": 2, "worker_seconds": 118.5, "evaluations": 385_552}
    return {
        "name": name,
        "job": {
            "name": name,
            "model": {"factory": "package.networks:resnet20", "weights": "weights.safetensors"},
            "data": {"calibration": images, "evaluation": images | {"limit": None}},
            "score": {"value": "neg_cross_entropy", "estimator": "hybrid", "seed": 0},
            "prune": {"macs": 0.5, "rank_by": ["mean_abs"], "allocation": "measured"},
        },
        "started": "2026-01-02T03:04:04.000+00:00",
        "versions": {"python": "3.11.7", "shapray": "0.8.0", "torch": "2.9.0"},
        "stages": stages,
        "failures": [],
        "fingerprint": "0123456789abcdef" * 4,
        "fingerprint_parts": {"model.weights": "fedcba" * 10, "data.calibration": "abc" * 21},
        "precision": "float32",
        "evaluation": "789" * 21,
        "example_shape": [1, 3, 32, 32],
        "n_classes": n_classes,
        "class_names": class_names or None,
    }


def groups_table(sizes: Mapping[str, int]) -> pa.Table:
    rows = [
        {
            "group": group,
            "n_units": n,
            "modules": [group, f"{group}.bn", f"{group}.next"],
            "kind": "conv",
            "flat": True,
            "status": "scored",
            "reason": None,
            "tail_macs": 37_749_376,
        }
        for group, n in sizes.items()
    ]
    excluded = {"group": "stem", "status": "excluded", "reason": "pruning fails: shapes differ"}
    rows.append(rows[0] | excluded | {"n_units": 16, "modules": ["stem"], "tail_macs": None})
    return pa.Table.from_pylist(rows, schema=schemas.GROUPS)


def measured(top1: float, loss: float, share: float, n_removed: int) -> dict[str, Any]:
    latency = [
        {
            "batch": batch,
            "median_ms": 4.49 * share * batch**0.8,
            "p95_ms": 6.77 * share * batch**0.8,
            "n_passes": 230,
            "threads": 1,
            "device": "cpu (a processor)",
        }
        for batch in (1, 64)
    ]
    return {
        "top1": top1,
        "top1_low": top1 - 0.018,
        "top1_high": min(1.0, top1 + 0.017),
        "top5": 0.98,
        "loss": loss,
        "loss_low": loss - 0.09,
        "loss_high": loss + 0.09,
        "parameters": int(269_722 * share),
        "multiply_adds": int(40_551_040 * share),
        "n_images": 2000,
        "n_removed": n_removed,
        "file_bytes": int(1_094_288 * share),
        "latency": latency,
        "per_class": [top1] * 10,
    }


def metrics(n_removed: int) -> dict[str, Any]:
    return {
        "target": {"macs": 0.5},
        "criterion": "shapley",
        "allocation": "measured",
        "repair": ["least_squares"],
        "rounds": 1,
        "before": measured(0.8135, 0.8328, 1.0, 0),
        "cut": measured(0.255, 7.498, 0.4996, n_removed),
        "after": measured(0.7415, 1.238, 0.4996, n_removed),
        "random": [
            {"seed": seed} | measured(0.61 + 0.01 * seed, 1.9, 0.4991, n_removed)
            for seed in range(3)
        ],
        "criteria": [
            {
                "criterion": "taylor",
                "rounds": 1,
                "behind": {"difference": 0.021, "low": 0.004, "high": 0.038},
            }
            | measured(0.7205, 1.31, 0.4993, n_removed)
        ],
    }


def _table(rows: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    return pa.table({name: rows[name] for name in schema.names}, schema=schema)


def _scores(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    positive = rng.gamma(0.7, 0.2, n)
    negative = -rng.gamma(0.5, 0.05, n)
    return {
        "positive": positive,
        "negative": negative,
        "mean": positive + negative,
        "mean_abs": positive - negative,
        "error": rng.uniform(0.004, 0.03, n),
    }


def _score_rows(group: str, s: Mapping[str, np.ndarray]) -> dict[str, Any]:
    n = len(s["mean"])
    return {
        "group": [group] * n,
        "unit": np.arange(n),
        "mean": s["mean"],
        "mean_abs": s["mean_abs"],
        "std": 10 * s["error"],
        "standard_error": 0.2 * s["error"],
        "image_error": 0.98 * s["error"],
        "total_error": s["error"],
        "mean_abs_standard_error": 0.2 * s["error"],
        "mean_abs_image_error": 0.98 * s["error"],
        "mean_abs_total_error": s["error"],
        "n_images": np.full(n, 256),
        "n_exact": np.full(n, 11),
        "active_fraction": np.ones(n),
        "taylor": s["mean_abs"] * 0.1,
    }


def _class_scores(
    rng: np.random.Generator, group: str, s: Mapping[str, np.ndarray], labels: range
) -> pa.Table:
    n, k = len(s["mean"]), len(labels)
    rows = {name: np.repeat(values, k) for name, values in _score_rows(group, s).items()}
    mean = rows["mean"] * rng.gamma(1.0, 1.0, n * k)
    rows |= {"label": np.tile(np.arange(k), n), "mean": mean, "n_images": np.full(n * k, 25)}
    return _table(rows, schemas.CLASS_SCORES)


def _curve(n_units: int) -> list[dict[str, Any]]:
    rows = []
    for criterion, repair, fall, seeds in (
        ("whole", "none", 0.0, [None]),
        ("shapley", "none", 1.2, [None]),
        ("shapley", "least_squares", 0.15, [None]),
        ("taylor", "least_squares", 0.2, [None]),
        ("random", "least_squares", 0.4, [0, 1, 2]),
    ):
        for share in [1.0] if criterion == "whole" else [0.8, 0.65, 0.5, 0.35]:
            for seed in seeds:
                top1 = max(0.1, 0.8135 - fall * (1 - share) - 0.01 * (seed or 0))
                removed = int((1 - share) * n_units)
                rows.append(
                    measured(top1, 0.83 + 3 * fall * (1 - share), share, removed)
                    | {
                        "criterion": criterion,
                        "repair": repair,
                        "size": None if criterion == "whole" else share,
                        "ratio": removed / n_units,
                        "removed_fraction": removed / n_units,
                        "seed": seed,
                        "rounds": 0 if criterion == "whole" else 1,
                    }
                )
    return rows


def _explained(
    rng: np.random.Generator,
    scores: Mapping[str, Mapping[str, np.ndarray]],
    removed: Mapping[str, np.ndarray],
    labels: range,
    side: int,
    n_cards: int,
) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    for group, s in scores.items():
        order = np.argsort(s["mean_abs"])[::-1].tolist()
        ends = order[:n_cards], order[-n_cards:]
        found["units"] += _units(rng, group, s, removed[group], labels)
        found["correlations"] += _correlations(rng, group, len(order))
        found["interactions"] += _interactions(rng, group, *ends)
        found["sizes"] += _sizes(group, s["mean"], order)
        found["additivity"].append(_additivity(group, float(s["mean"].sum())))
        found["negatives"] += _negatives(rng, group, s, labels)
        found["sampling"] += _sampling(rng, group)
        found["flips"] += [_flips(group, p, len(removed[group])) for p in PRICES]
        found["cards"] += _cards(rng, group, ends, labels, side)
    first = next(iter(scores))
    for unit in {row["unit"] for row in found["cards"] if row["group"] == first}:
        kernel = {"picture": _picture(rng, 3, "PNG"), "height": 3, "width": 3}
        found["kernels"].append({"group": first, "unit": unit} | kernel)
    found["class_removal"] = [row for label in labels for row in _class_removal(label, first)]
    return found


def _units(
    rng: np.random.Generator,
    group: str,
    s: Mapping[str, np.ndarray],
    removed: np.ndarray,
    labels: range,
) -> list[dict[str, Any]]:
    away = (s["mean_abs"] - np.sort(s["mean_abs"])[len(removed)]) / s["error"]
    return [
        {
            "group": group,
            "unit": unit,
            "positive": s["positive"][unit],
            "negative": s["negative"][unit],
            "negative_share": rng.uniform(0, 0.6),
            "activation": rng.gamma(1.0),
            "l1_norm": rng.gamma(2.0),
            "taylor": s["mean_abs"][unit] * 0.1,
            "leave_one_out": s["mean"][unit] * 0.6,
            "unrepaired": rng.gamma(1.0),
            "selectivity": rng.uniform(0, 0.9),
            "activation_selectivity": rng.uniform(0, 0.5),
            "serves": int(rng.integers(len(labels))),
            "removed": unit in set(removed.tolist()),
            "misplaced": float(np.exp(-(away[unit] ** 2) / 2) / 2),
        }
        for unit in range(len(away))
    ]


def _correlations(rng: np.random.Generator, group: str, n: int) -> list[dict[str, Any]]:
    rows = []
    for score in ("mean", "mean_abs"):
        for other in OTHERS:
            r = rng.uniform(-0.2, 0.9)
            row = {"group": group, "score": score, "other": other, "correlation": r}
            rows.append(row | {"low": r - 0.3, "high": min(1.0, r + 0.2), "n_units": n})
    return rows


def _interactions(
    rng: np.random.Generator, group: str, top: list[int], bottom: list[int]
) -> list[dict[str, Any]]:
    pairs = [("top", *pair) for pair in combinations(top, 2)]
    pairs += [("bottom", *pair) for pair in combinations(bottom, 2)]
    pairs.append(("across", top[0], bottom[0]))
    return [
        {
            "group": group,
            "unit": min(unit, other),
            "other": max(unit, other),
            "kind": kind,
            "interaction": rng.normal(-0.02, 0.03),
            "standard_error": 0.004,
            "total_error": 0.009,
            "n_images": 64,
            "n_exact": 11,
        }
        for kind, unit, other in pairs
    ]


def _sizes(group: str, means: np.ndarray, order: list[int]) -> list[dict[str, Any]]:
    worth = {None: means.sum(), order[0]: means[order[0]], order[-1]: means[order[-1]]}
    return [
        {
            "group": group,
            "unit": unit,
            "size_from": place / 8,
            "size_to": (place + 1) / 8,
            "marginal": float(mean * (1.8 - 0.2 * place)),
            "standard_error": float(abs(mean) * 0.06),
            "n_images": 256,
        }
        for unit, mean in worth.items()
        for place in range(8)
    ]


def _additivity(group: str, total: float) -> dict[str, Any]:
    return {
        "group": group,
        "n_images": 256,
        "value_all": -0.8,
        "value_none": -0.8 - total,
        "alone": 1.7 * total,
        "last": 0.4 * total,
        "alone_error": 0.1 * total,
        "last_error": 0.05 * total,
    }


def _negatives(
    rng: np.random.Generator, group: str, s: Mapping[str, np.ndarray], labels: range
) -> list[dict[str, Any]]:
    rows = []
    for unit in np.flatnonzero(s["mean"] < 0).tolist():
        change = rng.normal(0.0, 0.006)
        rows.append(
            {
                "group": group,
                "unit": unit,
                "mean": s["mean"][unit],
                "total_error": s["error"][unit],
                "negative_share": 0.61,
                "label": int(rng.integers(len(labels))),
                "label_share": 0.43,
                "loss_change": change,
                "loss_low": change - 0.004,
                "loss_high": change + 0.004,
                "top1_change": 0.0005,
                "n_images": 2000,
            }
        )
    return rows


def _sampling(rng: np.random.Generator, group: str) -> list[dict[str, Any]]:
    return [
        {
            "group": group,
            "image_id": f"image-{image:04d}",
            "n_active": 4 + image % 8,
            "permutations": price,
            "error": float(rng.gamma(3.0) / price),
            "n_seeds": 20,
        }
        for price in PRICES
        for image in range(12)
    ]


def _flips(group: str, price: int, n_cut: int) -> dict[str, Any]:
    return {
        "group": group,
        "permutations": price,
        "n_images": 12,
        "n_cut": n_cut,
        "another_cut": min(1.0, (1.5 + len(group) / 10) / price),
        "n_other": 1.5 / price,
        "n_seeds": 20,
    }


def _cards(
    rng: np.random.Generator, group: str, ends: Sequence[list[int]], labels: range, side: int
) -> list[dict[str, Any]]:
    return [
        {
            "group": group,
            "unit": unit,
            "end": end,
            "direction": direction,
            "rank": rank,
            "image_id": f"image-{rng.integers(256):04d}",
            "label": int(rng.integers(len(labels))),
            "value": sign * float(rng.gamma(2.0)) / rank,
            "picture": _picture(rng, side, "JPEG"),
            "where": _bump(rng),
            "where_height": 8,
            "where_width": 8,
        }
        for end, units in zip(("top", "bottom"), ends)
        for unit in units
        for direction, sign in (("up", 1), ("down", -1))
        for rank in range(1, N_PICTURES + 1)
    ]


def _class_removal(label: int, group: str) -> list[dict[str, Any]]:
    units = [f"{group}/{unit}" for unit in range(8)]
    rows = []
    for removed, after, others in (
        ("class", 0.2, 0.7),
        ("random", 0.6, 0.65),
        ("score", 0.3, 0.31),
    ):
        top1 = after + 0.01 * (label % 7)
        row = {"label": label, "removed": removed, "n_units": 8, "units": units}
        row |= {"n_images": 200, "n_others": 1800, "top1_before": 0.8, "top1_after": top1}
        row |= {"top1_low": top1 - 0.05, "top1_high": top1 + 0.05, "others_before": 0.82}
        ends = {"others_low": others - 0.02, "others_high": others + 0.02}
        rows.append(row | {"others_after": others} | ends)
    return rows


def _bump(rng: np.random.Generator) -> list[float]:
    """A heat map of 8 x 8 with one place that adds and one that takes."""
    y, x = np.mgrid[:8, :8]
    (y1, x1), (y2, x2) = rng.uniform(1, 6, (2, 2))
    adds, takes = (np.exp(-((y - b) ** 2 + (x - a) ** 2) / 3) for b, a in ((y1, x1), (y2, x2)))
    return [float(value) for value in (adds - 0.6 * takes).ravel()]


def _picture(rng: np.random.Generator, side: int, form: str) -> bytes:
    """A few patches of colour, as a photograph has: noise would not compress."""
    coarse = rng.integers(0, 255, (min(side, 5), min(side, 5), 3), dtype=np.uint8)
    resampling = Image.Resampling.NEAREST if form == "PNG" else Image.Resampling.BICUBIC
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), resampling).save(buffer, form)
    return buffer.getvalue()
