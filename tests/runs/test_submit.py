"""Jobs submitted to a real Ray head node, stopped, and the node killed under them."""

import re

import pytest
from ray_nodes import ray_head
from tiny import REPOSITORY, results, shards, start, wait_for_shards, write_job

pytestmark = pytest.mark.cluster

# The README's command on few images, with more to do for each.
QUICKSTART = [
    "python",
    "-m",
    "shapray.run",
    "jobs/quickstart.yaml",
    "data.calibration.limit=24",
    "data.evaluation.limit=60",
    "score.permutations=64",
    "score.precision=float32",
    "cluster.images_per_task=1",
    "cluster.device=cpu",
]


@pytest.fixture(scope="module")
def head():
    with ray_head("--num-cpus=2", "--num-gpus=0") as head:
        yield head


@pytest.fixture(scope="module")
def submitted(head, tmp_path_factory):
    """What `ray job submit` from another folder shows, and the run directory."""
    folder = tmp_path_factory.mktemp("elsewhere")
    output = folder / "out"
    shown = head.job(
        *("submit", "--working-dir", str(REPOSITORY), "--"),
        *(*QUICKSTART, f"output={output}"),
        cwd=folder,
    )
    return shown, output


def test_the_readmes_command_from_another_folder(submitted):
    shown, output = submitted
    assert shown.returncode == 0, shown.stdout + shown.stderr
    n_tasks = len(shards(output))
    assert f"score: {n_tasks}/{n_tasks} tasks" in shown.stdout
    assert f"all files are in {output}" in shown.stdout
    assert "succeeded" in shown.stdout


def test_a_stopped_job_goes_on_where_it_was(head, submitted, tmp_path):
    _, undisturbed = submitted
    output = tmp_path / "out"
    command = ("submit", "--working-dir", str(REPOSITORY))
    job = ("--", *QUICKSTART, f"output={output}")
    begun = head.job(*command, "--no-wait", "--submission-id=first", *job, cwd=tmp_path)
    assert begun.returncode == 0, begun.stderr
    wait_for_shards(output, 3)
    stopped = head.job("stop", "first", cwd=tmp_path)
    assert stopped.returncode == 0, stopped.stderr
    there = shards(output)
    assert len(there) < len(shards(undisturbed))

    again = head.job(*command, *job, cwd=tmp_path)
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
