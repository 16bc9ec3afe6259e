"""Faults in the middle of a run, on real processes: the tables come out the same, or the command
says what is missing and why."""

import json
import signal
import threading
import time

import numpy as np
import pytest
import tiny
from ray_nodes import ray_head
from tiny import SCORED, actors, image_folder, results, shards, start, wait_for_shards, write_job

from shapray.config import load_job
from shapray.inputs.images import open_images
from shapray.run import main
from shapray.storage.run_directory import RunDirectory

LONG = {"score__permutations": 64, "cluster__images_per_task": 1}  # 96 tasks, seconds of work


@pytest.fixture(scope="module")
def finished_long(tmp_path_factory):
    """The run directory of an undisturbed long run."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, "shared", False)
        assert main([str(write_job(folder, **LONG))]) == 0
    return folder / "out"


class Meanwhile(threading.Thread):
    """Does something to a run that goes on in the main thread; its errors are the test's."""

    def __init__(self, function) -> None:
        super().__init__(daemon=True)
        self.function, self.error = function, None
        self.start()

    def run(self) -> None:
        try:
            self.function()
        except BaseException as error:
            self.error = error

    def finish(self) -> None:
        self.join(120)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error


@pytest.mark.slow
@pytest.mark.cluster
def test_killed_workers_leave_no_trace_in_the_tables(shared_ray, finished, tmp_path):
    killed = []

    def kill() -> None:
        for n in (2, 6):
            wait_for_shards(tmp_path / "out", n)
            process = actors()[0]
            process.kill()
            killed.append(process.pid)

    killer = Meanwhile(kill)
    assert main([str(write_job(tmp_path))]) == 0
    killer.finish()
    assert len(set(killed)) == 2
    assert results(tmp_path / "out") == results(finished)


@pytest.mark.slow
@pytest.mark.cluster
def test_ten_workers_killed_one_after_the_other(shared_ray, finished_long, tmp_path):
    killed = set()

    def kill() -> None:
        while len(killed) < 10:
            n_shards = len(shards(tmp_path / "out"))
            for process in actors():
                if process.pid not in killed and n_shards:
                    process.kill()
                    killed.add(process.pid)
                    wait_for_shards(tmp_path / "out", n_shards + 4)
                    break
            time.sleep(0.01)

    killer = Meanwhile(kill)
    assert main([str(write_job(tmp_path, **LONG))]) == 0
    killer.finish()
    assert len(killed) == 10
    assert results(tmp_path / "out") == results(finished_long)


@pytest.mark.slow
@pytest.mark.cluster
def test_a_node_is_lost_and_another_one_comes(finished_long, tmp_path):
    output, with_gpu = tmp_path / "out", ("--num-cpus=2", "--num-gpus=1")
    job = write_job(tmp_path, **LONG, cluster__workers="auto", cluster__gpus_per_worker=0.5)
    with ray_head("--num-cpus=1", "--num-gpus=0") as head:
        with head.another(*with_gpu) as first:
            driver = start(job, **head.joined)
            wait_for_shards(output, 3, driver)
            first.kill()
        n_before = len(shards(output))
        with head.another(*with_gpu):  # all other shards are this one's: it has the GPU
            _, message = driver.communicate(timeout=240)
    assert driver.returncode == 0, message
    assert n_before < len(shards(finished_long))
    assert results(output) == results(finished_long)


@pytest.mark.slow
@pytest.mark.cluster
def test_two_drivers_at_once(finished_long, tmp_path, capsys):
    job, output = write_job(tmp_path, **LONG), tmp_path / "out"
    first = start(job)
    wait_for_shards(output, 3, first)
    first.send_signal(signal.SIGSTOP)  # it does not get done meanwhile
    assert main([str(job)]) == 2
    message = capsys.readouterr().err
    assert f"being worked on by another driver, process {first.pid} on " in message
    claim = json.loads((output / "claim.json").read_text())
    assert claim["since"] in message
    assert claim["expires"] in message
    first.send_signal(signal.SIGCONT)
    assert first.wait(120) == 0
    assert results(output) == results(finished_long)
    assert not (output / "claim.json").exists()


def test_an_image_that_breaks_after_planning(in_process, tmp_path, capsys):
    images, output = image_folder(tmp_path), tmp_path / "out"
    section = {"source": "imagefolder", "path": str(images), "limit": 24}
    one_by_one = {"cluster__images_per_task": 1}
    job = str(write_job(tmp_path, **one_by_one, data__calibration=section))
    data = load_job(job).data
    chosen = open_images(data.calibration, data.transform, "data.calibration").ids[-1]
    whole = (images / chosen).read_bytes()

    def damage() -> None:
        wait_for_shards(output, 1)
        (images / chosen).write_bytes(whole[:20])

    vandal = Meanwhile(damage)
    assert main([job]) == 3
    vandal.finish()
    message = capsys.readouterr().err
    assert message.startswith("shapray: stage score: ")
    assert f"image '{chosen}' ({images / chosen}) does not decode" in message
    record = json.loads((output / "run.json").read_text())
    n_failed = len(record["failures"])
    assert 1 <= n_failed <= 4
    assert all(failure["task"].endswith("images 23-23") for failure in record["failures"])
    assert all("Traceback" in failure["traceback"] for failure in record["failures"])
    assert len(shards(output)) == 96 - n_failed
    before = shards(output)

    (images / chosen).write_bytes(whole)
    assert main([job, *SCORED]) == 0
    assert before.items() <= shards(output).items()
    assert json.loads((output / "run.json").read_text())["failures"] == []


def test_batches_shrink_until_they_fit_into_memory(tmp_path):
    tables = []
    for limit in (10**9, 64):
        output = f"memory://{tmp_path.name}/{limit}"
        network = {"factory": "tiny:Crowded", "kwargs": {"limit": limit}}
        job = write_job(tmp_path, model=network, output=output, score__exact_max_players=8)
        assert main([str(job), *SCORED]) == 0
        tables.append(RunDirectory(output).read_table("scores.parquet").to_pandas())
    assert len(tiny.OUT_OF_MEMORY) > 0
    roomy, crowded = tables
    for column in ("mean", "mean_abs", "standard_error"):
        np.testing.assert_allclose(crowded[column], roomy[column], atol=1e-5)
    assert crowded["n_images"].eq(24).all()


def test_a_value_that_is_not_finite_sets_its_task_aside(in_process, tmp_path, capsys):
    job = write_job(tmp_path)
    data = load_job(job).data
    images = open_images(data.calibration, data.transform, "data.calibration")
    brightness = images.load(0, len(images)).sum((1, 2, 3))
    brightest = int(brightness.argmax())
    assert brightest >= 4, "the first images are those that groups are checked on"
    limit = float(brightness.sort().values[-2:].mean())

    job = write_job(tmp_path, model={"factory": "tiny:Bright", "kwargs": {"limit": limit}})
    assert main([str(job)]) == 3
    message = capsys.readouterr().err
    assert message.startswith("shapray: stage score: 1 task failed")
    assert f"group first, image {images.ids[brightest]}: the value is" in message
    assert "Traceback" not in message
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["stages"]["score"]["state"] == "failed"
    assert record["stages"]["aggregate"]["state"] == "waiting"
    assert "NonFiniteValue" in record["failures"][0]["traceback"]
    assert len(shards(tmp_path / "out")) == 11  # the other images' stay
