"""A run's tables, by name, from wherever they lie."""

import importlib
import shutil
import sys

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from faulty_s3 import BUCKET, faulty_s3

import shapray
from shapray.storage.explained import TABLES, UNITS
from shapray.storage.run_directory import RunDirectory
from shapray.storage.schemas import SCORES, SHARD

OF_A_RUN = (
    *("groups", "prices", "scores", "class_scores", "images"),
    *("curve", "group_losses", "removed"),
    *TABLES,
)
IN_SQL = 'SELECT "group", unit, avg(shapley_value) AS mean FROM values GROUP BY ALL ORDER BY ALL'


@pytest.fixture
def copied(finished, tmp_path):
    """A run to be changed."""
    return shutil.copytree(finished, tmp_path / "group=x" / "run")


def put(folder, url):
    store = RunDirectory(url)
    for path in folder.rglob("*"):
        if path.is_file():
            store.publish(str(path.relative_to(folder)), path.read_bytes())
    return url


@pytest.fixture(params=["folder", "memory", "s3"])
def run(request, finished):
    """The same run on several file systems."""
    if request.param == "folder":
        yield str(finished)
    elif request.param == "memory":
        yield put(finished, "memory://tables/run")
        fsspec.filesystem("memory").rm("/tables", recursive=True)
    else:
        with faulty_s3():
            yield put(finished, f"s3://{BUCKET}/tables/run")


def test_all_tables_everywhere(run, finished):
    found = shapray.tables(run)
    assert found.names == OF_A_RUN
    scores = pq.read_table(finished / "scores.parquet")
    assert isinstance(found.arrow("scores"), ds.Dataset)
    assert found.arrow("scores").to_table() == scores
    assert found.pandas("scores").equals(scores.to_pandas())
    assert found.polars("scores").collect().to_arrow()["mean"].to_pylist() == (
        scores["mean"].to_pylist()
    )
    n_scored = len(set(scores["group"].to_pylist()))
    assert found.arrow("images").count_rows() == 24 * n_scored
    assert set(found.arrow("images").schema.names) == set(SHARD.names)
    with found.duckdb() as connection:
        views = {name for (name,) in connection.sql("SHOW TABLES").fetchall()}
        assert views == {*OF_A_RUN, "values", "glossary"}
        means = connection.sql(IN_SQL).to_arrow_table()
    expected = scores.sort_by([("group", "ascending"), ("unit", "ascending")])
    assert means["unit"].to_pylist() == expected["unit"].to_pylist()
    np.testing.assert_allclose(means["mean"], expected["mean"], atol=1e-9)


def test_only_what_is_asked_for_is_read(copied):
    """Shards of other groups may be damaged: nobody opens them."""
    for path in copied.glob("shards/group=*/images-*.parquet"):
        if path.parent.name != "group=fc1":
            path.write_bytes(b"damaged")
    found = shapray.tables(str(copied))
    query = "SELECT count(*) FROM values WHERE \"group\" = 'fc1' AND unit < 3"
    assert found.duckdb().sql(query).fetchall() == [(24 * 3,)]
    only = pc.field("group") == "fc1"
    assert len(found.pandas("images", columns=["label"], filter=only)) == 24
    polars = importlib.import_module("polars")
    rows = found.polars("images").filter(polars.col("group") == "fc1").select("image_id")
    assert rows.collect().shape == (24, 1)


def test_the_units_that_go_are_those_of_the_plan(finished):
    removed = shapray.tables(str(finished)).pandas("removed")
    plan = RunDirectory(str(finished)).read_json("prune/plan.json")["groups"]
    assert {group: of["unit"].tolist() for group, of in removed.groupby("group")} == {
        group: of["removed"] for group, of in plan.items() if of["removed"]
    }


def test_what_explains_the_scores_is_there_when_it_is(copied):
    row = dict.fromkeys(UNITS.names) | {"group": "fc1", "unit": 3, "removed": True}
    table = pa.Table.from_pylist([row], schema=UNITS)
    RunDirectory(str(copied)).publish_table("explain/units.parquet", [table], UNITS)
    found = shapray.tables(str(copied))
    assert "units" in found.names
    assert found.duckdb().sql("SELECT unit FROM units WHERE removed").fetchall() == [(3,)]


def test_another_cut_has_its_own_tables(copied):
    shutil.copytree(copied / "prune", copied / "aside")
    shutil.move(copied / "aside", copied / "prune" / "small")
    plan = RunDirectory(str(copied / "prune" / "small"))
    plan.publish_json("plan.json", {"groups": {"fc1": {"n_units": 64, "removed": [7]}}})
    small = shapray.tables(str(copied), cut="small")
    assert small.names == OF_A_RUN
    assert small.pandas("removed").to_numpy().tolist() == [["fc1", 7]]
    with pytest.raises(ValueError, match=r"cut: 'large'; .*/prune has the cuts small"):
        shapray.tables(str(copied), cut="large")


def test_every_column_of_every_table_is_in_the_glossary(finished):
    found = shapray.tables(str(finished))
    glossary = found.glossary().to_pylist()
    known = {(row["table"], row["column"]) for row in glossary}
    described = found.duckdb().sql("SELECT table_name, column_name FROM duckdb_columns()")
    shown = {row for row in described.fetchall() if row[0] in {*OF_A_RUN, "values"}}
    assert shown
    assert shown <= known
    assert all(row["meaning"] and row["type"] for row in glossary)
    (error,) = (r for r in glossary if (r["table"], r["column"]) == ("scores", "image_error"))
    assert error["unit"] == "value"


def test_a_run_of_an_earlier_version_has_a_glossary_all_the_same(copied):
    """Its files say nothing of their columns."""
    scores = pq.read_table(copied / "scores.parquet")
    plain = pa.schema([field.remove_metadata() for field in SCORES])
    pq.write_table(scores.select(SCORES.names).cast(plain), copied / "scores.parquet")
    for path in list(copied.glob("shards/*/images-*.parquet"))[::2]:
        pq.write_table(pq.ParquetFile(path).read().drop_columns("sampling"), path)
    found = shapray.tables(str(copied))
    assert all(row["meaning"] for row in found.glossary().to_pylist())
    assert found.arrow("images").to_table()["sampling"].null_count > 0


def test_what_is_not_there_is_said(finished, tmp_path):
    with pytest.raises(ValueError, match=r"run.json: no such file; is this the output folder"):
        shapray.tables(str(tmp_path))
    with pytest.raises(ValueError, match=r"no table 'score' in .*; there are groups, prices, sco"):
        shapray.tables(str(finished)).arrow("score")


@pytest.mark.parametrize("package", ["pandas", "polars", "duckdb"])
def test_a_package_that_is_missing_is_named(finished, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)  # as if it was not installed
    found = shapray.tables(str(finished))
    asked = {
        "pandas": lambda: found.pandas("scores"),
        "polars": lambda: found.polars("scores"),
        "duckdb": found.duckdb,
    }
    with pytest.raises(ImportError, match=rf"{package} is not installed; pip install 'shapray\["):
        asked[package]()
