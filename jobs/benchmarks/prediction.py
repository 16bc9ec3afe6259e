"""The time that `--plan` predicts against the time that the job takes, on three jobs.

    python -m jobs.benchmarks.prediction --readme   # about 8 minutes on two quiet cores
    python -m jobs.benchmarks.prediction --what score

Run from the repository's folder, on a machine that does nothing else. *score*: all scoring tasks in
this process, in seconds of the processor, which other programs on the machine hardly change.
*command*: the whole command with Ray, by the clock, and the seconds that its workers say that they
scored for; on a busy machine both are too long.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import safetensors.torch
import torch
import yaml
from torchvision.models import resnet18

from jobs.benchmarks.networks import DATA, ROOT, machine
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
from shapray.cluster.local_pool import LocalPool
from shapray.config import load_job
from shapray.driver.forecast import make_forecast
from shapray.driver.preview import TIMED_FOR_AUTO
from shapray.driver.tasks import score_tasks
from shapray.worker.tasks import Receipt
from shapray.worker.worker import Worker

PATH = RESULTS / "prediction.parquet"
JOBS = {
    "digits (quickstart)": ("jobs/quickstart.yaml", ()),
    "ResNet-20, 48 images": ("jobs/cifar10_resnet20.yaml", ("data.calibration.limit=48",)),
    "ResNet-18, 8 images": ("resnet18", ()),
}
WHAT = ("score", "command")
TOLERANCE = 0.25


def write_resnet18(folder: Path) -> Path:
    """torchvision's ResNet-18 with random weights on CIFAR-10: wide groups, few images."""
    torch.manual_seed(0)
    weights = folder / "resnet18.safetensors"
    safetensors.torch.save_file(resnet18(num_classes=10).state_dict(), weights)
    images = {"source": "parquet", "limit": 8}
    job = {
        "name": "resnet18",
        "model": {
            "factory": "torchvision.models:resnet18",
            "kwargs": {"num_classes": 10},
            "weights": str(weights),
        },
        "data": {
            "calibration": {**images, "path": str(DATA / "cifar10_calibration.parquet")},
            "evaluation": {
                **images,
                "path": str(DATA / "cifar10_evaluation.parquet"),
                "limit": 200,
            },
        },
        "score": {"permutations": 4, "precision": "float32"},
        "cluster": {"images_per_task": 4},
        "output": "",
    }
    path = folder / "resnet18.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def measure(name: str, what: str, folder: Path) -> Row:
    path, overrides = JOBS[name]
    file = write_resnet18(folder) if path == "resnet18" else ROOT / path
    output = folder / f"{file.stem}-{what}"
    given = [*overrides, f"output={output}", "cluster.device=cpu"]
    job = load_job(file, given)
    start = time.perf_counter()
    asked = job.score.permutations
    forecast = make_forecast(job, TIMED_FOR_AUTO if asked == "auto" else (asked,))
    row: Row = {"forecast_seconds": time.perf_counter() - start}
    prediction = forecast.at(job.score.permutations)
    if what == "score":
        prices = {group.name: group.price for group in prediction.groups}
        tasks = score_tasks(forecast.planned, None, prices, forecast.survey.precision, "")
        pool = LocalPool(functools.partial(Worker, forecast.planned.setup), job.cluster)
        receipts: list[Receipt] = []
        start = time.process_time()
        failures = pool.run("score", tasks, receipts.append)
        measured = time.process_time() - start
        assert not failures, failures[0].message
        predicted = prediction.worker_seconds("score")
        evaluations = sum(receipt.n_evaluations for receipt in receipts)
        row |= {
            "evaluations": evaluations,
            "predicted_evaluations": sum(group.n_evaluations for group in prediction.groups),
        }
    else:
        start = time.perf_counter()
        command = [sys.executable, "-m", "shapray.run", str(file), *given]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        measured = time.perf_counter() - start
        predicted = prediction.seconds(forecast.n_workers)
        score = json.loads((output / "run.json").read_text())["stages"]["score"]
        row |= {
            "workers": forecast.n_workers,
            "worker_seconds": score["worker_seconds"],
            "predicted_worker_seconds": prediction.worker_seconds("score"),
        }
    row |= {"predicted": predicted, "measured": measured, "load": os.getloadavg()[0]}
    return {"job": name, "what": what, **row}


def table() -> str:
    lines = [
        [
            row["job"],
            row["what"],
            number(row["predicted"]),
            number(row["measured"]),
            met(row["predicted"] / row["measured"], 1 + TOLERANCE, at_least=False)
            if row["predicted"] > row["measured"]
            else met(row["predicted"] / row["measured"], 1 - TOLERANCE, at_least=True),
            f"{row['predicted_worker_seconds'] / row['worker_seconds']:.2f}"
            if row["what"] == "command"
            else "",
            number(row["load"]),
        ]
        for row in read(PATH)
    ]
    return (
        provenance(PATH)
        + "\n\nSeconds: of the processor for *score*, of the clock for *command*. The load is the "
        "machine's when the job had ended.\n\n"
        + markdown(
            [
                "job",
                "what",
                "predicted",
                "measured",
                "ratio (asked)",
                "workers' seconds scoring, ratio",
                "load",
            ],
            lines,
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Predicted against measured time.")
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--what", nargs="+", default=WHAT, choices=WHAT)
    parser.add_argument("--tables", action="store_true", help="only print what is there")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    options = parser.parse_args()
    if not options.tables:
        torch.set_num_threads(1)
        print(machine(), flush=True)
        os.chdir(ROOT)
        with tempfile.TemporaryDirectory() as folder:
            for what in options.what:
                for name in options.jobs:
                    row = measure(name, what, Path(folder))
                    merge(PATH, [row], ("job", "what"))
                    print(row, flush=True)
    text = table()
    print(text)
    if options.readme:
        fill("prediction", text)


if __name__ == "__main__":
    main()
