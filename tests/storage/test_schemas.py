"""What the columns hold, in words, in the files themselves."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shapray.config.prune import CRITERIA as ASKED
from shapray.driver.kept import has_criterion, with_criterion
from shapray.storage import schemas
from shapray.storage.criteria import CRITERIA
from shapray.storage.explained import TABLES
from shapray.storage.run_directory import RunDirectory
from shapray.storage.shards import read_shard

WRITTEN = {
    "groups": schemas.GROUPS,
    "prices": schemas.PRICES,
    "shard": schemas.SHARD,
    "scores": schemas.SCORES,
    "class_scores": schemas.CLASS_SCORES,
    "curve": schemas.CURVE,
    "group_losses": schemas.LOSSES,
    **TABLES,
}


@pytest.mark.parametrize("table", WRITTEN)
def test_every_column_says_what_it_holds(table):
    for field in WRITTEN[table]:
        assert len((field.metadata or {})[b"meaning"]) > 5, field.name
        assert b"unit" in field.metadata


def test_every_criterion_of_a_job_has_a_column_with_a_meaning():
    assert {*CRITERIA, "random"} == set(ASKED)
    scores = schemas.SCORES.empty_table()
    for name in CRITERIA:
        scores = with_criterion(scores, name, np.zeros(0), "made of this")
        assert scores.schema.field(name).metadata[b"meaning"]
        assert has_criterion(scores, name, "made of this")
        assert not has_criterion(scores, name, "made of that")


def test_the_files_of_a_run_carry_the_meanings(finished):
    for path in (
        *finished.glob("*.parquet"),
        *finished.glob("prune/*.parquet"),
        *finished.glob("shards/*/*.parquet"),
    ):
        for field in pq.read_schema(path):
            assert (field.metadata or {}).get(b"meaning"), (path, field.name)


def test_a_shard_without_meanings_is_sound(finished, tmp_path):
    """As earlier versions wrote them."""
    written = next(iter(finished.glob("shards/group=fc1/images-000000-*.parquet")))
    table = pq.ParquetFile(written).read()
    plain = pa.schema([field.remove_metadata() for field in table.schema], table.schema.metadata)
    path = tmp_path / written.relative_to(finished)
    path.parent.mkdir(parents=True)
    pq.write_table(table.cast(plain), path)
    assert not pq.read_schema(path).field("label").metadata
    fingerprint = json.loads((finished / "run.json").read_text())["fingerprint"]
    ids = table["image_id"].to_pylist()
    store = RunDirectory(str(tmp_path))
    n_units = len(table["shapley_value"][0])
    assert read_shard(store, "fc1", n_units, 0, ids, fingerprint).equals(table)
