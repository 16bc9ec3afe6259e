"""A real Ray head node: what does not reach it, jobs submitted to it and stopped, and its end."""

import re
import subprocess
from pathlib import Path

import pytest
import ray
from ray_nodes import AUTHENTICATION, Head, ray_head
from tiny import REPOSITORY, SCORED, results, shards, start, wait_for_shards, write_job

from shapray.cluster.connect import join
from shapray.errors import JobError

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("no_ray")]

# The README's command on few images.
QUICKSTART = [
    "python",
    "-m",
    "shapray.run",
    "jobs/quickstart.yaml",
    "data.calibration.limit=24",
    "data.evaluation.limit=60",
    "score.precision=float32",
    "cluster.device=cpu",
    *SCORED,
]
LONG = ["score.permutations=64", "cluster.images_per_task=1"]  # 96 tasks, seconds of work


@pytest.fixture(scope="module")
def head():
    with ray_head("--num-cpus=2", "--num-gpus=0") as head:
        yield head


def submit(
    head: Head, output: Path, changes: list[str], *options: str
) -> subprocess.CompletedProcess:
    """`ray job submit` from another folder than the repository."""
    return head.job(
        *("submit", "--working-dir", str(REPOSITORY), *options, "--"),
        *(*QUICKSTART, *changes, f"output={output}"),
        cwd=output.parent,
    )


@pytest.mark.slow
def test_the_port_of_rays_client_and_the_head_nodes_own(head):
    host = head.address.partition(":")[0]
    with pytest.raises(JobError, match=f"write ray://{host}:{head.client}, or the port"):
        join(f"{host}:{head.client}")
    with pytest.raises(JobError, match=r"is the head node's own port: write it without ray://"):
        join(f"ray://{head.address}")
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_token_that_is_not_the_clusters(head, tmp_path):
    wrong = head.joined | {"RAY_AUTH_TOKEN": AUTHENTICATION["RAY_AUTH_TOKEN"][::-1]}
    driver = start(write_job(tmp_path), **wrong)
    _, shown = driver.communicate(timeout=240)
    assert driver.returncode == 2
    assert f"shapray: the Ray cluster at {head.address} (RAY_ADDRESS) cannot be joined" in shown
    assert "RAY_AUTH_TOKEN" in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_readmes_command_from_another_folder(head, tmp_path):
    output = tmp_path / "out"
    shown = submit(head, output, [])
    assert shown.returncode == 0, shown.stdout + shown.stderr
    n_tasks = len(shards(output))
    assert f"score: {n_tasks}/{n_tasks} tasks" in shown.stdout
    assert f"all files are in {output}" in shown.stdout
    assert "succeeded" in shown.stdout


@pytest.mark.slow
def test_a_stopped_job_goes_on_where_it_was(head, tmp_path):
    output, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    assert submit(head, undisturbed, LONG).returncode == 0
    begun = submit(head, output, LONG, "--no-wait", "--submission-id=first")
    assert begun.returncode == 0, begun.stderr
    wait_for_shards(output, 3)
    stopped = head.job("stop", "first", cwd=tmp_path)
    assert stopped.returncode == 0, stopped.stderr
    there = shards(output)
    assert len(there) < len(shards(undisturbed))

    again = submit(head, output, LONG)
    assert again.returncode == 0, again.stdout + again.stderr
    found = re.search(r"score: (\d+) of \d+ shards are there already", again.stdout)
    assert int(found[1]) >= len(there)
    assert there.items() <= shards(output).items()
    assert results(output) == results(undisturbed)


@pytest.mark.slow  # a driver waits a minute for a head node that is gone
def test_the_head_node_is_killed(head, tmp_path):
    job = write_job(tmp_path, score__permutations=64, cluster__images_per_task=1)
    output, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    driver = start(job, **head.joined)
    wait_for_shards(output, 3, driver)
    head.node.kill()
    driver.communicate(timeout=180)
    assert driver.returncode != 0
    there = shards(output)
    with ray_head("--num-cpus=2", "--num-gpus=0") as other:
        again = start(job, **other.joined)
        _, message = again.communicate(timeout=240)
        assert again.returncode == 0, message
        assert there.items() <= shards(output).items()
        reference = start(job, f"output={undisturbed}", **other.joined)
        assert reference.wait(240) == 0
    assert len(there) < len(shards(undisturbed))
    assert results(output) == results(undisturbed)
