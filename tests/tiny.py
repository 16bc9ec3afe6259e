"""A small real job for the tests of whole runs, and the process of a run to disturb.

Workers import this module too, so it is a plain one beside the tests.
"""

import json
import logging
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
import yaml
from torch import nn

REPOSITORY = Path(__file__).parents[1]
DIGITS = REPOSITORY / "jobs" / "data" / "digits.parquet"
# Of Ray's processes: the test modules are found, and what else the machine does is not done first.
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]),
    "RAY_worker_niceness": "0",
}
SCORED = (  # a job's overrides, where what is behind the scores does not matter
    *("prune.allocation=global", "prune.repair=[]"),
    *("prune.curve=[]", "prune.criteria=[]", "prune.export=[]"),
)
TABLES = ("groups.parquet", "scores.parquet", "class_scores.parquet", "prune/curve.parquet")


class Bright(nn.Module):
    """Its logits are infinite for images whose pixels sum to more than `limit`."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.first, self.second, self.limit = nn.Linear(64, 4), nn.Linear(4, 10), limit

    def forward(self, x):
        x = x.flatten(1)  # (n, 64)
        too_bright = x.sum(1, keepdim=True) > self.limit
        return self.second(self.first(x).relu()) / (1 - too_bright.float())


class Crowded(nn.Module):
    """Runs out of memory where more than `limit` images are in its second convolution at once."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 3)
        self.last, self.limit = nn.Linear(64, 10), limit

    def forward(self, x):
        x = within(self.second(self.first(x).relu()), self.limit)  # (n, 4, 4, 4)
        return self.last(x.relu().flatten(1))


OUT_OF_MEMORY: list[int] = []  # the batches that were too large


@torch.fx.wrap
def within(x, limit):
    if len(x) > limit:
        OUT_OF_MEMORY.append(len(x))
        raise torch.OutOfMemoryError(f"{len(x)} images do not fit; {limit} do")
    return x


def write_job(folder: Path, **overrides) -> Path:
    """A job on 24 digits that takes seconds; `overrides` are whole sections or single values,
    with dots written as double underscores."""
    job = {
        "name": "tiny",
        "model": {
            "factory": "shapray.zoo:digits_cnn",
            "weights": str(REPOSITORY / "jobs" / "data" / "digits_cnn.safetensors"),
        },
        "data": {
            "calibration": {
                "source": "parquet",
                "path": str(DIGITS),
                "where": {"split": "calibration"},
                "limit": 24,
            },
            "evaluation": {
                "source": "parquet",
                "path": str(DIGITS),
                "where": {"split": "evaluation"},
                "limit": 60,
            },
            "transform": {"mode": "L"},
        },
        "score": {"exact_max_players": 6, "precision": "float32"},
        "cluster": {"workers": 2, "images_per_task": 2, "device": "cpu"},
        "prune": {"rank_by": "mean_abs", "curve": [0.5], "random_seeds": [0, 1], "export": []},
        "explain": {"images": 0},
        "output": str(folder / "out"),
    }
    for key, value in overrides.items():
        *sections, last = key.split("__")
        node = job
        for section in sections:
            node = node[section]
        node[last] = value
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def digits_with(folder: Path, **changes) -> str:
    """A copy of the digits' table with whole columns replaced, or left out if None."""
    table = pq.read_table(DIGITS)
    for name, values in changes.items():
        position = table.schema.get_field_index(name)
        table = table.remove_column(position)
        if values is not None:
            table = table.append_column(name, pa.array(values))
    path = folder / "digits.parquet"
    pq.write_table(table, path)
    return str(path)


def image_folder(folder: Path) -> Path:
    """The digits of the calibration set as files, a folder per class."""
    table = pq.read_table(DIGITS, filters=[("split", "==", "calibration")]).slice(0, 60)
    for row in table.to_pylist():
        path = folder / "images" / str(row["label"]) / f"{row['image_id']}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row["image"])
    return folder / "images"


def start_ray(num_cpus: int, **options) -> None:
    """A Ray of this process, whose workers find the test modules."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        ray.init(
            "local",
            num_cpus=num_cpus,
            num_gpus=0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=100 * 2**20,
            **options,
        )


def start(job: Path, *overrides: str, **environment: str) -> subprocess.Popen:
    """The command in a process of its own, away from this one's Ray."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-m", "shapray.run", str(job), *overrides],
        env=inherited | ENVIRONMENT | environment,
        cwd=job.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def shards(output: Path) -> dict[str, int]:
    """Path -> time of last change, in ns, of the published shards."""
    return {
        str(path.relative_to(output)): path.stat().st_mtime_ns
        for path in output.glob("shards/*/images-*.parquet")
    }


def actors() -> list[psutil.Process]:
    """The workers' processes below this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # others come and go
            if process.name().startswith("ray::Host"):
                found.append(process)
    return found


def wait_for_shards(output: Path, n: int, process: subprocess.Popen | None = None) -> None:
    """Returns as soon as `n` shards are there."""
    until = time.monotonic() + 120
    while len(shards(output)) < n:
        assert time.monotonic() < until, "no shards within two minutes"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.005)


def without_seconds(content: dict[str, Any]) -> dict[str, Any]:
    """A JSON file of a run without what is never the same."""
    for network in ("before", "cut", "after"):
        content.get(network, {}).pop("latency", None)
    return content


def results(output: Path) -> dict[str, Any]:
    """Every table and plan of a run, in a form that compares exactly."""
    found: dict[str, Any] = {name: pq.read_table(output / name) for name in TABLES}
    found |= {
        str(path.relative_to(output)): pq.read_table(path)
        for path in sorted(output.glob("shards/*/images-*.parquet"))
    }
    for name in ("prune/plan.json", "prune/metrics.json"):
        found[name] = without_seconds(json.loads((output / name).read_text()))
    found["prune/model.safetensors"] = (output / "prune/model.safetensors").read_bytes()
    return found
