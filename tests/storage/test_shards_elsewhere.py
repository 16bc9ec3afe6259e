"""The folder of shards read by other programs, as one table."""

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from shapray.storage.run_directory import RunDirectory
from shapray.storage.schemas import SHARD
from shapray.storage.shards import (
    columns_path,
    list_shards,
    publish_columns,
    publish_shard,
    shard_path,
)

NAMES = {
    "plain": ["layer1.0.conv1", "fc"],
    "odd": ["a/b", "a=b", "50 %", "größe", "-c", "~", "x%2F"],
    "numbers": ["0", "3", "12"],
    "one number": ["7"],
    "numbers and words": ["0", "fc"],
}


def shard(group):
    return pa.table(
        {
            "group": [group] * 2,
            "image_id": ["cat", "dog"],
            "label": [0, None],
            "n_active": [3] * 2,
            "estimator": ["exact", "permutation"],
            "sampling": [None, "pairs"],
            "n_evaluations": [8] * 2,
            "n_permutations": [0, 2],
            "value_all": [-0.5] * 2,
            "value_none": [-2.5] * 2,
            "shapley_value": [[0.5] * 4] * 2,
            "standard_error": [[0.0] * 4, [None] * 4],
            "active": [[True, True, True, False]] * 2,
        },
        schema=SHARD,
    )


@pytest.fixture(params=NAMES)
def run(request, tmp_path):
    """A run's folder and the names of its groups."""
    store, names = RunDirectory(str(tmp_path / "run")), NAMES[request.param]
    publish_columns(store, names)
    for group in names:
        for first in (0, 2):
            publish_shard(store, group, first, first + 2, shard(group), "f" * 64, "")
    return tmp_path / "run", sorted(names)


def with_pandas(folder):
    return pa.Table.from_pandas(pd.read_parquet(folder))


def with_dataset(folder):
    return ds.dataset(folder, partitioning="hive").to_table()


def with_duckdb(folder, options):
    found = duckdb.sql(f"SELECT * FROM read_parquet('{folder}/**/*.parquet', {options})")
    return found.to_arrow_table()


READERS = {
    "pandas": with_pandas,
    "pyarrow.parquet": pq.read_table,
    "pyarrow.dataset": with_dataset,
    "duckdb": lambda folder: with_duckdb(folder, "hive_partitioning = false"),
    "duckdb, folders": lambda folder: with_duckdb(folder, "hive_partitioning = true"),
    "duckdb, names": lambda folder: with_duckdb(folder, "hive_types_autocast = false"),
}


@pytest.mark.parametrize("reader", READERS)
def test_all_rows_with_all_columns_and_the_names_as_they_are(run, reader):
    folder, names = run
    table = READERS[reader](f"{folder}/shards")
    assert set(table.column_names) == set(SHARD.names)
    found = table.to_pandas()
    if reader != "duckdb, folders":  # which makes numbers of folders that are all numbers
        assert all(isinstance(name, str) for name in found["group"])
    found = found.astype({"group": str}).sort_values(["group", "image_id"])
    assert found["group"].tolist() == [name for name in names for _ in range(4)]
    assert found["image_id"].tolist() == ["cat", "cat", "dog", "dog"] * len(names)
    assert all(list(values) == [0.5] * 4 for values in found["shapley_value"])
    assert found["sampling"].fillna("").tolist() == ["", "", "pairs", "pairs"] * len(names)


@pytest.mark.parametrize("run", ["plain", "odd", "numbers and words"], indirect=True)
def test_pandas_counts_no_group_that_is_none(run):
    folder, names = run
    assert sorted(pd.read_parquet(folder / "shards")["group"].cat.categories) == names


def test_one_group_can_be_asked_for_by_its_name(run):
    folder, names = run
    filters = [("group", "==", names[0])]
    tables = [
        pq.read_table(folder / "shards", filters=filters),
        pa.Table.from_pandas(pd.read_parquet(folder / "shards", filters=filters)),
        ds.dataset(folder / "shards", partitioning="hive").to_table(
            filter=ds.field("group") == names[0]
        ),
    ]
    for table in tables:
        assert [str(name) for name in table["group"].to_pylist()] == [names[0]] * 4


def test_a_single_file_and_a_single_folder_say_their_group(run):
    folder, names = run
    path = folder / shard_path(names[0], 0, 2)
    assert pq.read_table(path)["group"].to_pylist() == [names[0]] * 2
    assert pd.read_parquet(path.parent)["group"].tolist() == [names[0]] * 4


def test_shards_of_an_earlier_version_are_read_beside_new_ones(run):
    folder, names = run
    for path in sorted((folder / "shards").glob("group=*/images-000000-000002.parquet"))[::2]:
        pq.write_table(pq.read_table(path).drop_columns("sampling"), path)
    for reader in ("pandas", "pyarrow.parquet", "pyarrow.dataset"):
        table = READERS[reader](f"{folder}/shards")
        assert set(table.column_names) == set(SHARD.names)
        assert len(table) == 4 * len(names)
    # DuckDB takes the columns from the first file, unless told otherwise
    table = with_duckdb(f"{folder}/shards", "union_by_name = true")
    assert set(table.column_names) == set(SHARD.names)


def test_the_file_of_the_columns_is_no_shard(run):
    folder, names = run
    store = RunDirectory(str(folder))
    assert store.read(columns_path(names)) is not None
    assert list_shards(store) == {
        shard_path(g, first, first + 2) for g in names for first in (0, 2)
    }
