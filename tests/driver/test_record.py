"""What a later command makes of the ``run.json`` that it finds, and what is written into it."""

import datetime
import json

import pytest
from tiny import write_job

from shapray.config import load_job
from shapray.driver.record import Record, earlier_run
from shapray.errors import JobError
from shapray.run import main
from shapray.storage.claim import Claim
from shapray.storage.run_directory import RunDirectory

SOUND = {"fingerprint_parts": {"score.precision": "float32"}, "evaluation": "digest"}


@pytest.fixture
def store(tmp_path):
    return RunDirectory(str(tmp_path / "out"))


def recorded(store, job):
    """What a driver of the job would publish at first, as it is read."""
    Record(store, job, Claim(store), "2020-01-01").publish()
    return store.read_json("run.json")


def test_no_run(store):
    assert earlier_run(store) is None


def test_an_earlier_run(store):
    store.publish_json("run.json", SOUND | {"more": 1})
    found = earlier_run(store)
    assert (found.precision, found.evaluation) == ("float32", "digest")


@pytest.mark.parametrize(
    "content",
    [
        {},
        SOUND | {"evaluation": None},
        SOUND | {"fingerprint_parts": ["score.precision"]},
        SOUND | {"fingerprint_parts": {}},
        SOUND | {"fingerprint_parts": {"score.precision": 32}},
        SOUND | {"fingerprint_parts": {"score.precision": ["float32"]}},
    ],
)
def test_a_damaged_one_is_named(store, content):
    store.publish_json("run.json", content)
    with pytest.raises(JobError, match=r"output: .*/run\.json is damaged or not one of"):
        earlier_run(store)


@pytest.mark.parametrize("content", ["[1]", '{"fingerprint_parts": 1}'])
@pytest.mark.parametrize("options", [[], ["--budget", "1h"]])
def test_the_command_says_so_and_writes_nothing(tmp_path, store, capsys, content, options):
    store.publish("run.json", content.encode())
    assert main([str(write_job(tmp_path)), *options]) == 2
    assert "run.json" in capsys.readouterr().err
    assert store.read("run.json") == content.encode()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]


def test_the_network_can_be_built_from_what_is_written(tmp_path, store):
    kwargs = {"pool_key": "max", "tokens_to_token": "performer", "widths": [8, 16]}
    model = {"factory": "nets.token:build", "kwargs": kwargs}
    found = recorded(store, load_job(write_job(tmp_path, model=model)))
    assert found["job"]["model"] == model | {"weights": None, "output": None}


def test_what_is_secret_is_not_written(tmp_path, store):
    job = write_job(
        tmp_path,
        model__kwargs={"api_key": "sEcReT", "url": "https://host/x?sig=sEcReT"},
        model__weights="s3://sEcReT:sEcReT@bucket/w.pt",
        data__calibration__kwargs={"pool_key": "sEcReT"},
    )
    assert "sEcReT" not in json.dumps(recorded(store, load_job(job)))


def test_what_json_would_change_is_not_written_as_something_else(tmp_path, store):
    """A mapping by number would come back as one by text, and build another network."""
    kwargs = {"widths": {0: 8, 1: 16}, "since": datetime.date(2020, 1, 2), "names": {"0": 8}}
    found = recorded(store, load_job(write_job(tmp_path, model__kwargs=kwargs)))
    assert found["job"]["model"]["kwargs"] == {
        "widths": "***",
        "since": "***",
        "names": {"0": 8},
    }
