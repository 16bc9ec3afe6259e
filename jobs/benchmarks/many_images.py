"""A simulated run of many images: how long the cookbook's queries take on it, and what memory
summing it up, explaining it and its report take.

python -m jobs.benchmarks.many_images FOLDER [--images 50000]

4,224 units in the 13 groups of a VGG-16, 100 shards, 2 GB for 50,000 images. The run is written to
FOLDER, which is to be deleted afterwards; what is there of an earlier call is taken as it is.
"""

import argparse
import itertools
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import shapray
from jobs.benchmarks.memory import peak
from jobs.cookbook.queries import QUERIES
from shapray.config import Prune
from shapray.explain.activations import Activations
from shapray.explain.extremes import find_extremes
from shapray.explain.units import ClassMeans, unit_rows
from shapray.pruning.doubt import misplaced
from shapray.report.page import publish_report
from shapray.storage import names
from shapray.storage.aggregate import aggregate_group
from shapray.storage.explained import EXTREMES, UNITS
from shapray.storage.run_directory import RunDirectory
from shapray.storage.schemas import CLASS_SCORES, CURVE, GROUPS, SCORES, SHARD
from shapray.storage.shards import list_shards, publish_columns, publish_shard, shard_path

WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
N_UNITS = {f"conv{i}": width for i, width in enumerate(WIDTHS, 1)}
WIDEST = "conv13"
N_SHARDS, N_LABELS = 100, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--images", type=int, default=50_000)
    options = parser.parse_args()
    for step in (
        write,
        sum_up,
        explain,
        page,
        ask,
    ):  # a process each, so that each one's memory is its own
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            print(process.submit(step, options.folder, options.images).result())


def write(folder: str, n_images: int) -> str:
    """The shards, one at a time: 8 of each group, and 7 of the first ones."""
    store = RunDirectory(folder)
    if store.read(names.RUN) is not None:
        return f"{folder} is there already"
    random, start = np.random.default_rng(0), time.perf_counter()
    publish_columns(store, N_UNITS)
    for group, n_units in N_UNITS.items():
        for first, last in _slices(group, n_images):
            table = _shard(random, group, n_units, first, last)
            publish_shard(store, group, first, last, table, "simulated", "")
    store.publish_table(names.GROUPS, [_groups()], GROUPS)
    store.publish_table(f"{names.CUTS}/{names.CURVE}", [CURVE.empty_table()], CURVE)
    store.publish_json(names.RUN, {"name": "simulated", "job": {}, "stages": {}})
    shards = list_shards(store)
    size = sum(store.fs.size(f"{store.root}/{path}") for path in shards) / 1e9
    return (
        f"{n_images:,} images x {sum(WIDTHS):,} units in {len(shards)} shards, {size:.2f} GB, "
        f"written in {time.perf_counter() - start:.0f} s"
    )


def sum_up(folder: str, n_images: int) -> str:
    """The score tables, a group at a time, and a plan by them."""
    store, start = RunDirectory(folder), time.perf_counter()
    before, found = peak(), []
    for group, n_units in N_UNITS.items():
        paths = [shard_path(group, *images) for images in _slices(group, n_images)]
        found.append(aggregate_group(group, n_units, map(store.read_table, paths)))
    seconds, most = time.perf_counter() - start, peak()
    scores = [of_units for of_units, _ in found]
    store.publish_table(names.SCORES, scores, SCORES)
    store.publish_table(names.CLASS_SCORES, [of_classes for _, of_classes in found], CLASS_SCORES)
    store.publish_json(f"{names.CUTS}/{names.PLAN}", _plan(scores))
    return (
        f"summed up in {seconds:.0f} s, with at most {most / 2**30:.2f} GiB of memory, of which "
        f"{before / 2**30:.2f} before the first shard"
    )


def explain(folder: str, n_images: int) -> str:
    """What the shards say of each unit; there is no network to ask for more."""
    store, start = RunDirectory(folder), time.perf_counter()
    before, scores = peak(), store.read_table(names.SCORES)
    classes, parts = store.read_table(names.CLASS_SCORES), []
    plan = store.read_json(f"{names.CUTS}/{names.PLAN}") or {}
    for group, n_units in N_UNITS.items():
        shards = [shard_path(group, *images) for images in _slices(group, n_images)]
        extremes = find_extremes(group, n_units, map(store.read_table, shards))
        removed = plan["groups"][group]["removed"]
        own = scores.filter(pc.equal(scores["group"], group))
        rows = unit_rows(
            group,
            extremes,
            Activations(np.full(n_units, np.nan), np.zeros(0, int), np.zeros((0, n_units))),
            {},
            ClassMeans.of(classes.filter(pc.equal(classes["group"], group)), n_units),
            removed,
            misplaced(own, Prune(rank_by=("mean_abs",)), None, removed),
        )
        parts.append((rows, extremes.table))
    units, extremes_of_all = zip(*parts, strict=True)
    store.publish_table(names.explained("units"), units, UNITS)
    store.publish_table(names.explained("extremes"), extremes_of_all, EXTREMES)
    return (
        f"explained in {time.perf_counter() - start:.0f} s, with at most {peak() / 2**30:.2f} GiB "
        f"of memory, of which {before / 2**30:.2f} before the first shard"
    )


def page(folder: str, n_images: int) -> str:
    """The report."""
    store, start = RunDirectory(folder), time.perf_counter()
    size = store.fs.size(publish_report(store)) / 2**20
    return (
        f"report of {size:.1f} MiB in {time.perf_counter() - start:.0f} s, with at most "
        f"{peak() / 2**30:.2f} GiB of memory"
    )


def ask(folder: str, n_images: int) -> str:
    """Every question of the cookbook, of the widest group where one is named."""
    start = time.perf_counter()
    connection = shapray.tables(folder).duckdb()
    lines = [f"{time.perf_counter() - start:6.2f} s  to open"]
    for query in QUERIES:
        start, used = time.perf_counter(), time.process_time()
        connection.sql(query.sql.replace("conv2", WIDEST)).fetchall()
        seconds, used = time.perf_counter() - start, time.process_time() - used
        lines.append(f"{seconds:6.2f} s, {used:.2f} of processors  {query.question}")
    return "\n".join([*lines, f"with at most {peak() / 2**30:.2f} GiB of memory"])


def _slices(group: str, n_images: int) -> list[tuple[int, int]]:
    few = list(N_UNITS).index(group) < len(WIDTHS) - N_SHARDS % len(WIDTHS)
    cuts = np.linspace(0, n_images, N_SHARDS // len(WIDTHS) + (not few) + 1).astype(int).tolist()
    return list(itertools.pairwise(cuts))


def _shard(
    random: np.random.Generator, group: str, n_units: int, first: int, last: int
) -> pa.Table:
    n = last - first
    worth = np.random.default_rng(n_units).exponential(0.1, n_units)
    value = random.normal(worth, 0.1, (n, n_units)).astype(np.float32)
    active = random.random((n, n_units)) < 0.8
    value[~active] = 0
    error = np.where(active, random.uniform(0.02, 0.08, value.shape), 0).astype(np.float32)

    def lists(values: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), n_units)

    ids = np.arange(first, last)
    none = random.normal(-5, 1, n)
    columns = {
        "group": np.full(n, group, dtype=object),
        "image_id": ids.astype(str),
        "label": ids % N_LABELS,
        "n_active": active.sum(1),
        "estimator": np.full(n, "permutation", dtype=object),
        "sampling": np.full(n, "pairs", dtype=object),
        "n_evaluations": np.full(n, 4 * n_units),
        "n_permutations": np.full(n, 4),
        "value_all": none + value.sum(1, dtype=float),
        "value_none": none,
        "shapley_value": lists(value),
        "standard_error": lists(error),
        "active": lists(active),
    }
    return pa.table(columns).cast(SHARD)


def _groups() -> pa.Table:
    rows = [
        {
            "group": group,
            "n_units": n_units,
            "modules": [group],
            "kind": "conv",
            "flat": True,
            "status": "scored",
            "reason": None,
            "tail_macs": 10**7,
        }
        for group, n_units in N_UNITS.items()
    ]
    return pa.Table.from_pylist(rows, schema=GROUPS)


def _plan(scores: Sequence[pa.Table]) -> dict[str, object]:
    """A third of every group goes, what is worth least."""
    worth = zip(N_UNITS.items(), (table["mean_abs"].to_numpy() for table in scores))
    return {
        "groups": {
            group: {"n_units": n, "removed": sorted(values.argsort()[: n // 3].tolist())}
            for (group, n), values in worth
        }
    }


if __name__ == "__main__":
    main()
