"""Workers on a real local Ray: every task once, whatever happens to the workers."""

import functools
import os
import runpy
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
import torch

from shapray.cluster import ray_pool
from shapray.cluster.local_pool import LocalPool
from shapray.cluster.ray_pool import MAX_ATTEMPTS, RayPool
from shapray.cluster.start import open_pool
from shapray.config import Cluster
from shapray.errors import ClusterError, JobError, StorageError

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("shared_ray")]


@dataclass(frozen=True)
class Task:
    name: str
    folder: str
    cost: float = 1.0


class Scribe:
    """Leaves a line with its process in the task's folder for every start of a task."""

    def __init__(self, device):
        self.done = []

    def _note(self, task):
        """How often the task has been started by now."""
        path = Path(task.folder) / task.name
        with path.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return len(path.read_text().splitlines())

    def echo(self, task):
        self._note(task)
        return task.name, os.getpid()

    def meet(self, task):
        """Waits for a second process to come."""
        self._note(task)
        until = time.monotonic() + 60
        while len({pid for path in Path(task.folder).glob("task-*") for pid in starts(path)}) < 2:
            assert time.monotonic() < until
            time.sleep(0.01)
        return task.name, os.getpid()

    def order(self, task):
        self.done.append(task.name)
        return tuple(self.done)

    def fail_once(self, task):
        if self._note(task) == 1 and task.name == "bad":
            raise OSError("the storage stumbled")
        return task.name, os.getpid()

    def fail(self, task):
        n = self._note(task)
        if task.name.startswith("bad"):
            raise ArithmeticError(f"attempt {n}")
        if task.name.startswith("job"):
            raise JobError("image 7 does not decode")
        if task.name.startswith("disk"):
            raise StorageError("cannot write x: no space left")
        return task.name, os.getpid()

    def die_once(self, task):
        if self._note(task) == 1 and task.name == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        return task.name, os.getpid()

    def stumble(self, task):
        """Short; fails or dies the first time if the name says so."""
        if task.name.startswith(("bad", "deadly")) and self._note(task) == 1:
            if task.name.startswith("deadly"):
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError("the storage stumbled")
        return task.name

    def die(self, task):
        self._note(task)
        if task.name == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        return task.name, os.getpid()

    def tell(self, task):
        """Says how far it is, and goes on when somebody has heard."""
        self.say("half way")
        until = time.monotonic() + 60
        while not Path(task.folder, "heard").exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        return task.name, os.getpid()

    def leave(self, task):
        self._note(task)
        if task.name == "leaver":
            sys.exit(2)
        return task.name, os.getpid()

    def told_to_end(self, task):
        """Twice as when a node goes: Ray's workers are sent this signal."""
        if self._note(task) <= MAX_ATTEMPTS and task.name == "told":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        return task.name, os.getpid()


def unwilling(device):
    raise JobError("model.factory: cannot import module 'nowhere'")


def out_of_reach(device):
    raise StorageError("cannot read s3://bucket/images: no route")


def broken(device):
    raise AssertionError(3)


def leaving(device):
    sys.exit("usage: net.py CONFIG")


class Importing:
    """Its unpickling imports a module that ends the program."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return runpy.run_path, (f"{self.folder}/module.py",)


@pytest.fixture(scope="module")
def pool(shared_ray):
    """Two workers; the third CPU is for tests that need a worker of their own."""
    pool = RayPool(Scribe, Cluster(workers=2))
    yield pool
    pool.close()


def do(pool, method, names, folder):
    receipts = []
    failures = pool.run(method, [Task(name, str(folder)) for name in names], receipts.append)
    return receipts, failures


def starts(path):
    return [int(pid) for pid in path.read_text().splitlines()]


NAMES = [f"task-{i}" for i in range(20)]


def test_every_task_is_done_once_by_all_workers_in_processes_of_their_own(pool, tmp_path):
    receipts, failures = do(pool, "meet", NAMES, tmp_path)
    assert sorted(name for name, _ in receipts) == sorted(NAMES)
    assert failures == []
    assert all(len(starts(tmp_path / name)) == 1 for name in NAMES)
    assert len({pid for _, pid in receipts}) == 2
    assert os.getpid() not in {pid for _, pid in receipts}


def test_the_workers_stay_for_the_next_stage(pool, tmp_path):
    (tmp_path / "again").mkdir()
    first, _ = do(pool, "meet", NAMES, tmp_path)
    second, _ = do(pool, "meet", NAMES, tmp_path / "again")
    assert {pid for _, pid in first} == {pid for _, pid in second}


def test_no_tasks_need_no_workers():
    idle = RayPool(Scribe, Cluster())
    assert do(idle, "echo", [], "") == ([], [])
    assert idle.members == []


@pytest.mark.parametrize("where", ["ray", "this process"])
def test_a_worker_says_how_far_it_is_with_a_task(pool, where, tmp_path):
    used = pool if where == "ray" else LocalPool(Scribe, Cluster(device="cpu"))
    heard = []

    def hear(counts):
        heard.append(counts.said)
        if counts.said == "half way":
            (tmp_path / "heard").touch()

    tasks = [Task(name, str(tmp_path)) for name in ("long", "longer")]
    receipts = []
    assert used.run("tell", tasks, receipts.append, hear) == []
    assert sorted(name for name, _ in receipts) == ["long", "longer"]
    assert set(heard) == {"half way", ""}
    assert heard[-1] == ""


def test_costly_tasks_go_first():
    pool = LocalPool(Scribe, Cluster(device="cpu"))
    receipts = []
    costs = {"a": 1.0, "b": 3.0, "c": 2.0, "d": 3.0}
    pool.run("order", [Task(name, "", cost) for name, cost in costs.items()], receipts.append)
    assert receipts[-1] == ("b", "d", "c", "a")


def test_a_task_that_fails_once_succeeds_on_another_worker(pool, tmp_path):
    (tmp_path / "before").mkdir()
    do(pool, "meet", NAMES, tmp_path / "before")  # both workers are up
    receipts, failures = do(pool, "fail_once", ["bad", *NAMES], tmp_path)
    assert failures == []
    assert len(receipts) == len(NAMES) + 1
    first, second = starts(tmp_path / "bad")
    assert dict(receipts)["bad"] == second != first


def test_a_task_that_fails_twice_is_set_aside_with_its_traceback(pool, tmp_path):
    receipts, failures = do(pool, "fail", ["bad-1", *NAMES, "bad-2"], tmp_path)
    assert len(receipts) == len(NAMES)
    assert sorted(failure.task.name for failure in failures) == ["bad-1", "bad-2"]
    for failure in failures:
        assert failure.message == "ArithmeticError: attempt 2"
        assert "Traceback" in failure.traceback
        assert "test_ray_pool.py" in failure.traceback
        assert not failure.is_job_error


def test_a_users_error_in_a_task_is_not_tried_again(pool, tmp_path):
    _, [failure] = do(pool, "fail", ["job", *NAMES], tmp_path)
    assert failure.message == "image 7 does not decode"
    assert failure.is_job_error
    assert len(starts(tmp_path / "job")) == 1


def test_a_worker_that_dies_is_replaced_and_its_tasks_go_elsewhere(pool, tmp_path):
    receipts, failures = do(pool, "die_once", ["deadly", *NAMES], tmp_path)
    assert failures == []
    assert sorted(name for name, _ in receipts) == sorted(["deadly", *NAMES])
    (tmp_path / "after").mkdir()
    again, _ = do(pool, "meet", NAMES, tmp_path / "after")
    assert len({pid for _, pid in again}) == 2
    assert starts(tmp_path / "deadly")[0] not in {pid for _, pid in again}


@pytest.mark.slow
def test_a_task_that_kills_every_worker_is_set_aside(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_pool, "MAX_DEATHS", 3)  # each takes seconds
    receipts, [failure] = do(pool, "die", ["deadly", *NAMES], tmp_path)
    assert sorted(name for name, _ in receipts) == sorted(NAMES)
    assert failure.task.name == "deadly"
    assert "3 workers died while they did it" in failure.message
    assert len(starts(tmp_path / "deadly")) == 3


@pytest.mark.slow
def test_short_tasks_that_come_in_batches_are_done_once_whatever_happens(pool, tmp_path):
    names = [f"task-{i}" for i in range(5000)]
    for i in range(2000, 5000, 2000):
        names[i : i + 2] = [f"bad-{i}", f"deadly-{i}"]
    receipts, seen = [], []

    def change(counts):
        seen.append((counts.n_done, counts.n_retried))

    tasks = [Task(name, str(tmp_path)) for name in names]
    assert pool.run("stumble", tasks, receipts.append, change) == []
    assert sorted(receipts) == sorted(names)
    assert seen[-1][0] == len(names)
    assert seen[-1][1] >= 4  # also what else was in the batches of the workers that died
    assert len(seen) < len(names) / 4  # so it was in batches


def test_what_goes_wrong_is_said_in_plain_lines(pool, tmp_path, caplog):
    class Named(Task):
        def __str__(self):
            return f"group {self.name}, images 0-15"

    for method in ("fail_once", "die_once"):
        (tmp_path / method).mkdir()
        names = ["bad", "deadly"] if method == "fail_once" else ["deadly"]
        pool.run(method, [Named(name, str(tmp_path / method)) for name in names], print)
    lines = [record.getMessage() for record in caplog.records]
    again = "fail_once: group bad, images 0-15 tried again on another worker: OSError: the storage"
    assert any(line.startswith(again) for line in lines)
    died = [line for line in lines if line.startswith("die_once: a worker died (node ")]
    assert "at group deadly, images 0-15; its tasks go elsewhere" in died[0]


def test_storage_that_cannot_be_written_stops_the_run(pool, tmp_path):
    names = [f"disk-{i}" for i in range(50)]
    with pytest.raises(StorageError, match="no space left"):
        do(pool, "fail", names, tmp_path)
    assert len(list(tmp_path.iterdir())) < len(names)
    (tmp_path / "after").mkdir()
    receipts, _ = do(pool, "echo", NAMES, tmp_path / "after")
    assert sorted(name for name, _ in receipts) == sorted(NAMES)  # and nothing of the old run


def test_a_worker_that_cannot_be_made_is_the_users_error():
    pool = RayPool(unwilling, Cluster(workers=1))
    with pytest.raises(JobError, match="cannot import module 'nowhere'"):
        do(pool, "echo", ["a"], "")
    pool.close()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (leaving, JobError, r"ended by sys.exit\('usage: net.py CONFIG'\) in .*test_ray_pool.py"),
        pytest.param(
            Importing,
            JobError,
            r"ended by sys.exit\(5\) in .*module.py, line 2",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            out_of_reach,
            StorageError,
            "cannot read s3://bucket/images",
            marks=pytest.mark.slow,
        ),
        (broken, ClusterError, r"(?s)cannot be set up: AssertionError: 3 .*Traceback.*in broken"),
    ],
)
def test_a_worker_that_ends_while_it_is_made_is_a_message(make, error, message, tmp_path):
    (tmp_path / "module.py").write_text("import sys\nsys.exit(5)\n")
    pool = RayPool(Importing(tmp_path) if make is Importing else make, Cluster(workers=1))
    with pytest.raises(error, match=message):
        do(pool, "echo", ["a"], "")
    pool.close()


def test_a_task_that_ends_the_program_is_set_aside_and_the_worker_goes_on(pool, tmp_path):
    receipts, [failure] = do(pool, "leave", ["leaver", *NAMES], tmp_path)
    assert sorted(name for name, _ in receipts) == sorted(NAMES)
    assert "ended by sys.exit(2)" in failure.message
    assert failure.is_job_error
    assert len(starts(tmp_path / "leaver")) == 1


def test_a_worker_that_ray_ends_loses_its_task_to_another(pool, tmp_path):
    receipts, failures = do(pool, "told_to_end", ["told", *NAMES], tmp_path)
    assert failures == []  # though it was begun more often than a task may fail
    assert len(set(starts(tmp_path / "told"))) == MAX_ATTEMPTS + 1
    assert len(receipts) == len(NAMES) + 1


def test_what_cannot_be_sent_to_workers_is_said():
    with pytest.raises(JobError, match=r"model.factory, data: .* cannot be pickled .*lock"):
        RayPool(functools.partial(print, threading.Lock()), Cluster())


def test_a_cluster_without_room_for_a_worker_is_named_with_its_numbers():
    needs = r"cluster.cpus_per_worker: a worker needs 4 CPU, 0 GPU on one node.*nodes: 3 CPU, 0 GPU"
    with pytest.raises(JobError, match=needs + ".*set cluster.grows: true"):
        RayPool(unwilling, Cluster(cpus_per_worker=4))
    with pytest.raises(
        JobError, match=r"^cluster.gpus_per_worker: a worker needs 1 CPU, 2 GPU"
    ) as it:
        RayPool(unwilling, Cluster(gpus_per_worker=2, grows=False))
    assert "grows" not in str(it.value)
    with pytest.raises(JobError, match="the cluster has no GPU"):
        RayPool(unwilling, Cluster(device="cuda"))
    with pytest.raises(JobError, match=r"gpus_per_worker: 0, and cluster.device: cuda needs 1"):
        RayPool(unwilling, Cluster(device="cuda", gpus_per_worker=0))


def test_auto_means_as_many_workers_as_the_cluster_holds(tmp_path):
    with open_pool(Scribe, Cluster(cpus_per_worker=3), in_process=False) as whole:
        assert whole.capacity == 1
    assert RayPool(Scribe, Cluster()).capacity == 3


def test_a_ray_that_was_there_before_stays():
    with open_pool(unwilling, Cluster(), in_process=False):
        pass
    assert ray.is_initialized()


def test_one_worker_in_this_process_that_ends_the_program_is_a_message(tmp_path):
    with pytest.raises(JobError, match=r"cannot be set up: .*ended by sys.exit"):
        LocalPool(leaving, Cluster(device="cpu"))
    _, [failure] = do(LocalPool(Scribe, Cluster(device="cpu")), "leave", ["leaver"], tmp_path)
    assert "ended by sys.exit(2)" in failure.message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_one_worker_in_this_process_without_the_gpu_it_asks_for():
    with pytest.raises(JobError, match=r"gpus_per_worker: 1.0, and this machine has no GPU"):
        LocalPool(Scribe, Cluster(gpus_per_worker=1))


def test_one_worker_in_this_process_does_the_same(tmp_path):
    pool = LocalPool(Scribe, Cluster(device="cpu"))
    receipts, failures = do(pool, "fail", ["bad", "job", *NAMES], tmp_path)
    assert {pid for _, pid in receipts} == {os.getpid()}
    assert sorted(failure.is_job_error for failure in failures) == [False, True]
    with pytest.raises(StorageError):
        do(pool, "fail", ["disk"], tmp_path)
