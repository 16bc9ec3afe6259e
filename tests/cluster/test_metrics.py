"""What Prometheus would read from a node while a run's driver is alive."""

import io
import json
import re
import socket
import threading
import time
import urllib.request

import pytest
import ray
from rich.console import Console
from tiny import SCORED, start_ray, write_job

from shapray.cluster.metrics import NAMES, Metrics
from shapray.cluster.ray_pool import RayPool
from shapray.config import Cluster
from shapray.driver import record
from shapray.driver.crew import Crew
from shapray.run import main

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def endpoint(no_ray):
    """The address at which a Ray of this process exports its metrics."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    often = {"metrics_report_interval_ms": 500}
    start_ray(num_cpus=2, _metrics_export_port=port, _system_config=often)
    return f"http://{ray.util.get_node_ip_address()}:{port}/metrics"


def scrape(endpoint):
    """{(name, stage or group or None): value} of this package's metrics."""
    with urllib.request.urlopen(endpoint, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found = {}
    for line in lines:
        if match := re.match(r"ray_(shapray_\w+)\{(.*)\} (\S+)$", line):
            name, labels, value = match.groups()
            label = re.search(r'(?:stage|group)="(.*?)"', labels)
            found[name, label and label[1]] = float(value)
    return found


def scrape_until(endpoint, key, value):
    until = time.monotonic() + 90
    while (found := scrape(endpoint)).get(key) != value:
        assert time.monotonic() < until, found
        time.sleep(0.5)
    return found


@pytest.mark.slow
def test_a_runs_metrics_are_exported(endpoint, tmp_path):
    output = tmp_path / "out"
    assert main([str(write_job(tmp_path, score__permutations=2)), *SCORED]) == 0
    n_shards = len(list(output.glob("shards/*/*.parquet")))
    scrape_until(endpoint, ("shapray_tasks_done_total", "score"), n_shards)
    scrape_until(endpoint, ("shapray_tasks_total", "score"), n_shards)
    n_bytes = sum(path.stat().st_size for path in output.glob("shards/*/*.parquet"))
    found = scrape_until(endpoint, ("shapray_shard_bytes_total", None), n_bytes)
    assert found["shapray_evaluations_total", None] > 0
    groups = {path.name.removeprefix("group=") for path in output.glob("shards/group=*")}
    rates = {key[1] for key in found if key[0] == "shapray_coalitions_per_second"}
    assert rates == groups
    scrape_until(endpoint, ("shapray_workers", None), 0)  # the run is over


def test_a_group_whose_name_is_not_ascii_is_exported_with_escapes(endpoint, caplog):
    Metrics().shard("größe/猫", 30, 2.0, 100)
    scrape_until(endpoint, ("shapray_coalitions_per_second", r"gr\\xf6\\xdfe/\\u732b"), 15)
    assert caplog.text == ""


def test_the_record_tells_while_tasks_are_done(in_process, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "REFRESH_SECONDS", 0.05)
    job, path, seen = write_job(tmp_path), tmp_path / "out" / "run.json", []
    over = threading.Event()

    def look():
        while not over.wait(0.01):
            if path.exists():
                seen.append(json.loads(path.read_text())["stages"]["score"])

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        assert main([str(job), *SCORED]) == 0
    finally:
        over.set()
        watcher.join()
    running = [stage for stage in seen if stage["state"] == "running" and "workers" in stage]
    assert any(0 < stage["tasks_done"] < stage["tasks"] for stage in running)
    done = json.loads(path.read_text())["stages"]["score"]
    assert done["tasks_done"] == done["tasks"] == 48
    assert done["tasks_failed"] == done["tasks_retried"] == 0
    assert done["evaluations"] >= max(stage["evaluations"] for stage in running) > 0
    assert all(stage["workers"] <= 2 for stage in running)


class Clumsy:
    def __init__(self, device):
        self.done = 0

    def fail(self, task):
        raise ArithmeticError("no")


@pytest.mark.slow
def test_what_failed_is_counted_and_every_name_is_exported(endpoint):
    class Task:
        cost = 1.0

    metrics = Metrics()
    crew = Crew(RayPool(Clumsy, Cluster(workers=1)), Console(file=io.StringIO()), metrics)
    assert len(crew.do("fail", [Task(), Task(), Task()], print)) == 3
    metrics.shard("conv1", n_evaluations=10, seconds=0.5, n_bytes=100)
    crew.end()
    crew.pool.close()
    for name in ("shapray_tasks_failed_total", "shapray_tasks_retried_total"):
        scrape_until(endpoint, (name, "fail"), 3)
    until, found = time.monotonic() + 90, set()
    while found != {name.removesuffix("_total") for name in NAMES}:
        assert time.monotonic() < until, found
        found |= {name.removesuffix("_total") for name, _ in scrape(endpoint)}
        time.sleep(0.5)
