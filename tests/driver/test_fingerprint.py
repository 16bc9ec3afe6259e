"""Which jobs are the same: those whose scores are."""

import json
from dataclasses import replace

import pytest
from tiny import write_job

from shapray.config import load_job
from shapray.driver.fingerprint import check_same_job, fingerprint_parts
from shapray.driver.inputs import open_inputs
from shapray.errors import JobError
from shapray.storage.run_directory import RunDirectory


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    job = load_job(write_job(tmp_path_factory.mktemp("job")))
    return open_inputs(job, RunDirectory("memory://fingerprint"))


def parts_with(inputs, **kwargs):
    model = inputs.job.model.model_copy(update={"kwargs": kwargs})
    job = inputs.job.model_copy(update={"model": model})
    return fingerprint_parts(replace(inputs, job=job), "float32")


def test_arguments_that_sound_like_credentials_tell_jobs_apart(inputs):
    found = json.loads(json.dumps(parts_with(inputs, pool_key="max")))
    check_same_job(found, parts_with(inputs, pool_key="max"), "here")
    with pytest.raises(JobError, match=r"'max'} there, {'pool_key': 'avg'} here"):
        check_same_job(found, parts_with(inputs, pool_key="avg"), "here")


def test_credentials_do_not(inputs):
    parts = parts_with(inputs, api_key="sEcReT")
    assert "sEcReT" not in json.dumps(parts)
    assert parts == parts_with(inputs, api_key="another")


def test_what_json_writes_otherwise_is_the_same_job_when_read(inputs):
    parts = parts_with(inputs, widths={0: 8, 1: 16}, sizes=(1, 2))
    check_same_job(json.loads(json.dumps(parts)), parts, "here")
