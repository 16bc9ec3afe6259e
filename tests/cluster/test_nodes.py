"""Workers on clusters of several nodes, each with its own processes: where they are put, and what
they do while the cluster grows and shrinks."""

import contextlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster as Nodes
from tiny import ENVIRONMENT

from shapray.cluster import ray_pool
from shapray.cluster.needs import n_fitting
from shapray.cluster.pool import Counts
from shapray.cluster.ray_pool import RayPool
from shapray.config import Cluster
from shapray.errors import JobError

pytestmark = pytest.mark.cluster

STORE = 80_000_000  # bytes of a node's object store


@dataclass(frozen=True)
class Task:
    number: int
    folder: str = ""
    cost: float = 1.0


class Witness:
    """Says where it is."""

    def __init__(self, device):
        self.place = (
            os.getpid(),
            ray.get_runtime_context().get_node_id(),
            os.environ.get("CUDA_VISIBLE_DEVICES"),
            os.environ.get("OMP_NUM_THREADS"),
        )

    def meet(self, task):
        """Comes back once as many workers as the folder's name says have come."""
        folder = Path(task.folder)
        (folder / str(os.getpid())).touch()
        until = time.monotonic() + 200
        while len(list(folder.iterdir())) < int(folder.name):
            assert time.monotonic() < until
            time.sleep(0.02)
        return task.number, *self.place

    def wait(self, task):
        """Until a node is lost, and that is another one than this worker's."""
        (Path(task.folder) / str(task.number)).touch()
        lost = Path(task.folder) / "lost"
        while not lost.exists() or lost.read_text() in ("", self.place[1]):
            time.sleep(0.02)
        return task.number, *self.place


@pytest.fixture
def nodes(no_ray, monkeypatch):
    """A cluster whose only node, the head, has no room for a worker."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    head = {"num_cpus": 0, "num_gpus": 0, "include_dashboard": False, "object_store_memory": STORE}
    nodes = Nodes(initialize_head=True, head_node_args=head)
    ray.init(nodes.address, log_to_driver=False, logging_level=logging.ERROR)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def places(cluster, n_workers, folder):
    """(process, node, GPUs, threads) of all workers, once there are as many as expected."""
    folder = folder / str(len(list(folder.iterdir()))) / str(n_workers)
    folder.mkdir(parents=True)
    pool, receipts = RayPool(Witness, cluster), []
    try:
        tasks = [Task(number, str(folder)) for number in range(3 * n_workers)]
        assert pool.run("meet", tasks, receipts.append) == []
    finally:
        pool.close()
    assert sorted(receipt[0] for receipt in receipts) == list(range(3 * n_workers))
    found = sorted({receipt[1:] for receipt in receipts})
    assert len(found) == n_workers
    return found


@pytest.mark.slow
def test_workers_are_put_where_their_resources_are(nodes, tmp_path):
    first = nodes.add_node(num_cpus=2, num_gpus=2, object_store_memory=STORE).node_id
    second = nodes.add_node(num_cpus=2, num_gpus=1, object_store_memory=STORE).node_id

    whole = places(Cluster(gpus_per_worker="auto"), 3, tmp_path)
    assert sorted((node, gpu) for _, node, gpu, _ in whole) == sorted(
        [(first, "0"), (first, "1"), (second, "0")]
    )
    # the first node has GPUs for 4, but only 2 CPUs
    halves = places(Cluster(gpus_per_worker=0.5), 4, tmp_path)
    assert [gpu for _, node, gpu, _ in halves if node == second] == ["0", "0"]
    [both] = places(Cluster(gpus_per_worker=2, cpus_per_worker=2), 1, tmp_path)
    assert both[1:] == (first, "0,1", "2")
    with pytest.raises(JobError, match=r"gpus_per_worker: .* 1 CPU, 3 GPU on one.*2 CPU, 2 GPU"):
        RayPool(Witness, Cluster(gpus_per_worker=3))


@pytest.mark.parametrize(("gpus", "expected"), [(1, 2), (0.5, 4), (0.1, 20), (1 / 3, 6), (2, 1)])
def test_a_part_of_a_gpu_never_spans_two(gpus, expected):
    assert n_fitting({"CPU": 99.0, "GPU": 2.0}, {"CPU": 1.0, "GPU": gpus}) == expected


@pytest.mark.slow
def test_a_new_node_is_used_and_a_lost_ones_tasks_go_elsewhere(nodes, tmp_path, caplog):
    old = nodes.add_node(num_cpus=1, object_store_memory=STORE)
    pool, receipts, added = RayPool(Witness, Cluster()), [], []
    assert pool.capacity == 1

    def change(counts: Counts) -> None:
        started = len(list(tmp_path.iterdir()))
        if not added and started:
            added.append(nodes.add_node(num_cpus=1, object_store_memory=STORE))
        elif len(added) == 1 and started == 2:  # the new one works, too
            nodes.remove_node(old, allow_graceful=False)
            added.append(None)
            (tmp_path / "lost").write_text(old.node_id)

    tasks = [Task(number, str(tmp_path)) for number in range(4)]
    assert pool.run("wait", tasks, receipts.append, change) == []
    assert sorted(receipt[0] for receipt in receipts) == [0, 1, 2, 3]
    assert {receipt[2] for receipt in receipts} == {added[0].node_id}
    assert "wait: a worker died" in caplog.text
    pool.close()


@pytest.mark.slow
def test_a_cluster_that_loses_its_last_node_is_waited_for_in_words(
    nodes, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(ray_pool, "COMPLAIN_SECONDS", 1.0)
    only = nodes.add_node(num_cpus=1, object_store_memory=STORE)
    pool, receipts, added = RayPool(Witness, Cluster()), [], []
    nodes.remove_node(only, allow_graceful=False)

    def change(counts: Counts) -> None:
        if not added and not pool.members and "waiting for a worker to start" in caplog.text:
            added.append(nodes.add_node(num_cpus=1, object_store_memory=STORE))

    (tmp_path / "1").mkdir()
    assert pool.run("meet", [Task(0, str(tmp_path / "1"))], receipts.append, change) == []
    assert [receipt[2] for receipt in receipts] == [added[0].node_id]
    assert "set cluster.grows: true" in caplog.text
    pool.close()


# ---- a cluster that grows by itself ----------------------------------------------------------


def test_whether_a_cluster_without_room_grows_is_asked_or_guessed(nodes, caplog, monkeypatch):
    with pytest.raises(JobError, match=r"no node has that; nodes: 0 CPU, 0 GPU; .*grows: true"):
        RayPool(Witness, Cluster())
    assert RayPool(Witness, Cluster(grows=True)).grows
    assert "waiting for the autoscaler" in caplog.text
    assert "cluster.grows" not in caplog.text
    # as those who start nodes by the group tell each one
    monkeypatch.setenv("RAY_NODE_TYPE_NAME", "small")
    nodes.add_node(num_cpus=0, object_store_memory=STORE)
    assert RayPool(Witness, Cluster()).grows
    assert "set cluster.grows: false" in caplog.text
    with pytest.raises(JobError, match=r"nodes: 2 with 0 CPU, 0 GPU$"):
        RayPool(Witness, Cluster(grows=False))


HEAD = "ray.head.default"  # as this provider calls it, whatever the configuration says


def autoscaling(folder: Path, port: int) -> dict:
    """Configuration of Ray's own autoscaler, with nodes that are processes of this machine."""
    address = f"{socket.gethostbyname(socket.gethostname())}:{port}"
    commands = ("initialization", "setup", "head_setup", "worker_setup")
    return {
        "cluster_name": folder.name,
        "max_workers": 2,
        "idle_timeout_minutes": 10,
        "upscaling_speed": 10.0,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            HEAD: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "pair": {
                "resources": {"CPU": 2, "object_store_memory": STORE},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
        "head_node_type": HEAD,
        **{f"{kind}_commands": [] for kind in commands},
        **{f"{kind}_start_ray_commands": [] for kind in ("head", "worker")},
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts_sync_continuously": False,
    }


@pytest.fixture
def autoscaled(no_ray, monkeypatch):
    """A cluster without any node for workers, and an autoscaler that adds nodes of 2 CPUs."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    folder = Path(tempfile.mkdtemp(prefix="r-"))  # sockets need a short path
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    (folder / "config.json").write_text(json.dumps(autoscaling(folder, port)))
    options = (
        f"start --head --block --port={port} --temp-dir={folder} --include-dashboard=false "
        f"--autoscaling-config={folder / 'config.json'} --disable-usage-stats "
        f"--num-cpus=0 --num-gpus=0 --object-store-memory={STORE}"
    )
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *options.split()],
        env=os.environ
        | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        | {"RAY_AUTH_MODE": "disabled", "RAY_NODE_TYPE_NAME": HEAD},  # the name as by `ray up`
        stdout=(folder / "log").open("w"),
        stderr=subprocess.STDOUT,
    )
    try:
        until = time.monotonic() + 120
        while not ray.is_initialized():
            assert head.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until
            time.sleep(1)
            if "Ray runtime started" in (folder / "log").read_text():
                ray.init(f"127.0.0.1:{port}", log_to_driver=False, logging_level=logging.ERROR)
        yield
    finally:
        ray.shutdown()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid == head.pid or any(str(folder) in arg for arg in process.cmdline()):
                    process.kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_cluster_grows_from_nothing_to_what_the_work_needs(autoscaled, tmp_path, caplog):
    found = places(Cluster(), 4, tmp_path)
    assert "waiting for the autoscaler" in caplog.text
    assert len({node for _, node, _, _ in found}) == 2
