"""How much of the workers' time a run uses, and what a plan costs its driver.

    python -m jobs.benchmarks.scheduling --readme     # about 20 minutes on two quiet cores

Run from the repository's folder; `--what` measures some parts only, `--tables` prints what is
there.

*driver*: 100,000 tasks that do nothing, on 2 real Ray workers. *workers*: the ResNet-20 job on some
of its images with 1 and with 2 workers of 1 thread, in turns; the workers' time outside evaluation
is everything but the estimators: images read, groups prepared, shards written, and waiting until
the stage is over. *simulation*: the tasks that the planner makes of ResNet-50 (random weights,
enlarged CIFAR-10 images of 224 x 224 pixels, their active units counted), with the times that
`shapray.worker.survey` measures here and a spread of 20 %, handed out by the pool's own backlog to
512 simulated workers; 2 % of them die at some moment, lose what they were doing and are replaced
after a minute. Idle is all that is not the evaluation of a task that was finished. A GPU is
simulated by times a hundredth as long. *memory*: the peak resident size of a fresh process that
plans and hands out 1,000,000 tasks, without the libraries' files that are mapped into it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from jobs.benchmarks.networks import DATA, ROOT
from jobs.benchmarks.results import (
    RESULTS,
    Row,
    fill,
    markdown,
    merge,
    met,
    number,
    provenance,
    read,
)
from jobs.benchmarks.simulated import Simulation
from shapray.cluster.backlog import Backlog
from shapray.cluster.ray_pool import RayPool
from shapray.config import Cluster, Job
from shapray.driver.inputs import open_inputs
from shapray.driver.plan import Plan, plan
from shapray.driver.prices import GroupPrice, usual_price
from shapray.driver.tasks import score_tasks
from shapray.shapley.estimators import is_exact, n_sampled
from shapray.shapley.pilot import Price
from shapray.storage.run_directory import RunDirectory
from shapray.worker.survey import Surveyor, SurveyTask
from shapray.worker.tasks import ScoreTask

PATH = RESULTS / "scheduling.parquet"
PARTS = ("driver", "memory", "workers", "simulation")
EMPTY_TASKS, PLANNED_TASKS = 100_000, 1_000_000
JOB_IMAGES, TURNS = 64, 5
N_WORKERS, FAILING = 512, 0.02  # of the simulation
SIMULATED_IMAGES = 10_000
NOISE = 0.2  # standard deviation of the logarithm of a task's time
GPU, GPU_PREPARING = 100.0, 5.0  # times as fast: evaluating, and preparing a group
QUIET = 3.0  # load; the run before leaves up to 2 of it
KEYS = ("what", "name", "n_workers", "turn", "failing")


def row(what: str, name: str, value: float, **more: float) -> Row:
    return {"what": what, "name": name, **dict.fromkeys(KEYS[2:]), "value": value, **more}


# ---- the driver ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Returned:
    task: ScoreTask


def _prices(planned: Plan) -> dict[str, GroupPrice]:
    """What the job says for every group."""
    setup = planned.setup
    found = GroupPrice(usual_price(setup.job.score), len(setup.calibration))
    return {group.name: found for group in setup.groups}


class Idler:
    def __init__(self, device: str) -> None:
        self.device = device

    def score(self, task: ScoreTask) -> Returned:
        return Returned(task)


def empty_tasks(n: int) -> Iterator[ScoreTask]:
    for i in range(n):
        group, cost = f"layer{i % 50}.conv1", float(i % 977)
        yield ScoreTask(group, i, i + 16, Price(8), "float32", "fingerprint", cost)


def driver() -> list[Row]:
    """Wall and processor milliseconds of the driver per task."""
    ray.init(
        "local",
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    pool, receipts = RayPool(Idler, Cluster(workers=2)), Counter[str]()
    pool.run("score", list(empty_tasks(8)), lambda receipt: None)  # the workers are up
    tasks = list(empty_tasks(EMPTY_TASKS))
    wall, processor = time.perf_counter(), time.process_time()
    failures = pool.run("score", tasks, lambda receipt: receipts.update([receipt.task.precision]))
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    assert not failures
    assert receipts.total() == EMPTY_TASKS
    pool.close()
    ray.shutdown()
    return [
        row("driver", name, seconds / EMPTY_TASKS * 1e3)
        for name, seconds in (("wall_ms", wall), ("processor_ms", processor))
    ]


def memory() -> list[Row]:
    """MiB of a fresh process at its peak: all that is resident, and what of it are mapped files."""
    command = [sys.executable, "-m", "jobs.benchmarks.scheduling", "--plan"]
    answer = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    names = ("imports_mib", "mapped_mib", "peak_mib")
    return [row("memory", *found) for found in zip(names, map(float, answer.stdout.split()[-3:]))]


def hold_a_plan() -> None:
    """Plan, queue and hand out many tasks as a driver does; prints its memory."""
    base = _status("VmHWM")
    planned = plan(open_inputs(resnet20_job(), RunDirectory("memory://plan")))
    per_image = len(planned.setup.groups) / planned.setup.job.cluster.images_per_task
    many: Any = _Many(int(PLANNED_TASKS / per_image) + 1)
    planned = replace(planned, setup=replace(planned.setup, calibration=many))
    n_active = np.ones((len(many), len(planned.setup.groups)), np.int32)
    tasks = score_tasks(planned, n_active, _prices(planned), "float32", "0" * 64)
    assert len(tasks) >= PLANNED_TASKS
    backlog, n_taken = Backlog(tasks), 0
    while entries := backlog.take(0, 2, 2):
        backlog.learn(len(entries), 1e-4, 2)
        n_taken += len(entries)
    assert n_taken == len(tasks)
    print(base, _status("RssFile"), _status("VmHWM"))


def _status(key: str) -> float:
    """MiB, from what Linux knows of this process."""
    with open("/proc/self/status") as file:
        return next(float(line.split()[1]) / 1024 for line in file if line.startswith(key))


@dataclass(frozen=True)
class _Many:
    """As many images as it says."""

    n: int

    def __len__(self) -> int:
        return self.n


def resnet20_job(**sections: Any) -> Job:
    transform = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    return Job.model_validate(
        {
            "name": "scheduling",
            "model": {
                "factory": "shapray.zoo:resnet20",
                "weights": str(DATA / "resnet20_cifar10.safetensors"),
            },
            "data": {
                name: {"source": "parquet", "path": str(DATA / f"cifar10_{name}.parquet")}
                for name in ("calibration", "evaluation")
            }
            | {"transform": transform},
            "output": "memory://scheduling",
        }
        | sections
    )


# ---- real workers ----------------------------------------------------------------------------


def workers() -> list[Row]:
    """The ResNet-20 job's score stage, in turns with 1 and with 2 workers."""
    rows: list[Row] = []
    for turn in range(TURNS):
        for n in (1, 2) if turn % 2 == 0 else (2, 1):
            load = os.getloadavg()[0]
            stage = score_stage(n)
            wall = stage["seconds"] * n
            found = {
                "tasks_per_second": stage["tasks"] / stage["seconds"],
                "outside": 1 - stage["worker_seconds_evaluating"] / wall,
                "outside_tasks": 1 - stage["worker_seconds"] / wall,
                "load_before": load,
            }
            rows += [
                row("workers", name, value, n_workers=n, turn=turn) for name, value in found.items()
            ]
            print(f"{n} workers: {found}", file=sys.stderr)
    return rows


def score_stage(n_workers: int) -> dict[str, float]:
    """A run in a process of its own; what its record says of the scoring."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            f"data.calibration.limit={JOB_IMAGES}",
            "data.evaluation.limit=64",
            "score.precision=float32",
            f"cluster.workers={n_workers}",
            "cluster.device=cpu",
            "prune.random_seeds=[]",
            "prune.curve=[]",
            f"output={folder}/out",
        ]
        command = [sys.executable, "-m", "shapray.run", "jobs/cifar10_resnet20.yaml", *overrides]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        stage = json.loads((Path(folder) / "out/run.json").read_text())["stages"]["score"]
    start, end = (np.datetime64(stage[key].removesuffix("+00:00")) for key in ("start", "end"))
    return stage | {"seconds": float((end - start) / np.timedelta64(1, "s"))}


# ---- simulated workers -----------------------------------------------------------------------


def simulation() -> list[Row]:
    """Idle share of many workers on the tasks of ResNet-50."""
    seconds, prepare = resnet50_times()
    rows: list[Row] = []
    for name, faster, preparing in (("cpu", 1.0, 1.0), ("gpu", GPU, GPU_PREPARING)):
        times = {task: spent / faster for task, spent in seconds.items()}
        ready = {group: spent / preparing for group, spent in prepare.items()}
        for failing in (FAILING, 0.0):
            simulated = Simulation(times, ready, N_WORKERS, failing)
            idle = simulated.run()
            found = {
                "idle": idle,
                "preparing": simulated.preparing / (N_WORKERS * simulated.finished),
                "minutes": simulated.finished / 60,
                "longest_task": max(times.values()),
            }
            print(f"simulation, {name}, {failing:.0%} failing: {found}", file=sys.stderr)
            rows += [
                row("simulation", f"{key}_{name}", value, failing=failing, n_tasks=len(times))
                for key, value in found.items()
            ]
    return rows


def resnet50_times() -> tuple[dict[ScoreTask, float], dict[str, float]]:
    """Seconds of the planner's tasks, and to prepare a worker for each group."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = {"resize": 224, "crop": 224}
    sections: dict[str, Any] = {
        "model": {"factory": "torchvision.models:resnet50", "kwargs": {"weights": None}},
        "data": resnet20_job().model_dump()["data"],
        "score": {"permutations": 4, "precision": "float32"},
    }
    sections["data"]["transform"] |= size
    planned = plan(open_inputs(resnet20_job(**sections), RunDirectory("memory://simulation")))
    asked = SurveyTask((2, 4), len(planned.setup.calibration))
    survey = Surveyor(planned.setup, "cpu").survey(asked)
    setup, score = planned.setup, planned.setup.job.score
    random = np.random.default_rng(0)
    n_images = len(setup.calibration)
    n_active = survey.n_active[random.integers(0, len(survey.n_active), n_images)]
    seconds: dict[ScoreTask, float] = {}
    column = {group.name: i for i, group in enumerate(setup.groups)}
    for task in score_tasks(planned, n_active, _prices(planned), "float32", "simulated"):
        counts = n_active[task.first : task.last, column[task.group]]
        exact = np.array([is_exact(int(k), score) for k in counts])
        evaluations = np.array(
            [2.0**k if e else n_sampled(int(k), 4) for k, e in zip(counts, exact)]
        )
        costs = survey.groups[task.group]
        spent = float((survey.load + costs.seconds(exact, evaluations, 4)).sum())
        for first in range(0, SIMULATED_IMAGES, n_images):
            copy = replace(task, first=task.first + first, last=task.last + first)
            seconds[copy] = spent * random.lognormal(0.0, NOISE)
    prepare = {name: costs.prepare for name, costs in survey.groups.items()}
    return seconds, prepare


# ---- tables ----------------------------------------------------------------------------------


def table(rows: list[Row]) -> str:
    """What was asked for and what was measured, of the parts that were."""
    lines: list[tuple[str, str]] = []

    def values(what: str, name: str, **having: Any) -> list[float]:
        return [
            row["value"]
            for row in rows
            if row["what"] == what
            and row["name"] == name
            and all(row.get(key) == value for key, value in having.items())
        ]

    if found := values("driver", "wall_ms"):
        title = f"driver's time per task, ms, {EMPTY_TASKS:,} empty tasks on 2 workers"
        lines.append((title, met(found[0], 1.0, at_least=False)))
        lines.append(("of it on the processor", number(values("driver", "processor_ms")[0])))
    if found := values("workers", "tasks_per_second", n_workers=2):
        one = values("workers", "tasks_per_second", n_workers=1)
        ratio = float(np.median(found) / np.median(one))
        lines.append(("tasks per second, 2 workers over 1", met(ratio, 1.85, at_least=True)))
        for n in (1, 2):
            outside = float(np.median(values("workers", "outside", n_workers=n)))
            lines.append((f"time outside evaluation, {n} workers", _share(outside, 0.05)))
        load = max(values("workers", "load_before"))
        if load > QUIET:
            lines.append((f"(the machine was busy: load {load:.1f} before a run)", ""))
    for name, what in (("cpu", "one thread each"), ("gpu", f"{GPU:.0f} times as fast")):
        if found := values("simulation", f"idle_{name}", failing=FAILING):
            title = f"idle, {N_WORKERS} workers, {FAILING:.0%} failing, {what}"
            lines.append((title, _share(found[0], 0.05)))
            none = values("simulation", f"idle_{name}", failing=0.0)[0]
            lines.append(("of it without failures", f"{none:.1%}"))
            preparing = values("simulation", f"preparing_{name}", failing=FAILING)[0]
            lines.append(("of it preparing groups", f"{preparing:.1%}"))
    if found := values("memory", "peak_mib"):
        title = f"driver's memory, MiB, plan of {PLANNED_TASKS:,} tasks"
        mapped = values("memory", "mapped_mib")[0]
        lines.append((title, met(found[0] - mapped, 1024, at_least=False)))
        lines.append(("with the files of libraries that it maps", number(found[0])))
        lines.append(("these after the imports alone", number(values("memory", "imports_mib")[0])))
    return markdown(("what", "measured (asked)"), lines)


def _share(measured: float, asked: float) -> str:
    text = f"{measured:.1%}"
    return f"{text if measured <= asked else f'**{text}**'} (≤ {asked:.0%})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--what", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--tables", action="store_true", help="only print what is there")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    parser.add_argument("--plan", action="store_true", help="of the memory measurement")
    options = parser.parse_args()
    if options.plan:
        hold_a_plan()
        return
    parts = {"driver": driver, "memory": memory, "workers": workers, "simulation": simulation}
    for name in () if options.tables else options.what:
        merge(PATH, parts[name](), KEYS)
    text = f"{provenance(PATH)}\n\n{table(read(PATH))}"
    print(text)
    if options.readme:
        fill("scheduling", text)


if __name__ == "__main__":
    main()
