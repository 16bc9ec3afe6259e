"""The run directory: whole shards or none, what a reader refuses, names."""

import datetime
import io
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from shapray.errors import JobError, StorageError
from shapray.storage.run_directory import RunDirectory
from shapray.storage.schemas import SHARD
from shapray.storage.shards import UnsoundShard, list_shards, publish_shard, read_shard, shard_path

GROUP = "layer1.0.conv1"
IDS = ["cat-1", "dog-2", "ship/3"]
FINGERPRINT = "f" * 64


def shard(group=GROUP, ids=IDS, n_units=4):
    n = len(ids)
    return pa.table(
        {
            "group": [group] * n,
            "image_id": ids,
            "label": [0, None, 2][:n],
            "n_active": [3] * n,
            "estimator": ["exact", "permutation", "exact"][:n],
            "sampling": [None, "pairs", None][:n],
            "n_evaluations": [8] * n,
            "n_permutations": [0, 2, 0][:n],
            "value_all": [-0.5] * n,
            "value_none": [-2.5] * n,
            "shapley_value": [[0.5] * n_units] * n,
            "standard_error": [[0.0] * n_units, [None] * n_units, [0.0] * n_units][:n],
            "active": [[True, True, True, False][:n_units]] * n,
        },
        schema=SHARD,
    )


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    if request.param == "local":
        return RunDirectory(str(tmp_path / "run"))
    return RunDirectory(f"memory://{tmp_path.name}")


def published(store):
    publish_shard(store, GROUP, 6, 9, shard(), FINGERPRINT, "8 pairs")
    return shard_path(GROUP, 6, 9)


def test_a_shard_comes_back_as_it_was_written(store):
    path = published(store)
    assert list_shards(store) == {path}
    table = read_shard(store, GROUP, 4, 6, IDS, FINGERPRINT, "8 pairs")
    assert table.equals(shard())
    assert table["standard_error"][1].as_py() == [None] * 4  # not measured: null, not NaN


def test_a_shard_is_plain_parquet_with_the_documented_columns(tmp_path):
    store = RunDirectory(str(tmp_path))
    path = published(store)
    file = pq.ParquetFile(tmp_path / path)
    assert file.metadata.metadata[b"shapray.fingerprint"] == FINGERPRINT.encode()
    assert file.metadata.metadata[b"shapray.rows"] == b"3"
    types = {field.name: str(field.type) for field in file.schema_arrow}
    assert types["image_id"] == "string"
    assert types["value_all"] == "double"
    assert types["shapley_value"].startswith("list<")
    assert "float" in types["shapley_value"]


def test_a_shard_of_before_the_column_sampling_and_the_price_is_sound(store):
    """The fingerprint is the same, so a run that was begun then goes on."""
    path, new = published(store), SHARD.get_field_index("sampling")
    metadata = pq.read_schema(io.BytesIO(store.read(path))).metadata
    metadata = {key: value for key, value in metadata.items() if key != b"shapray.price"}
    earlier = SHARD.remove(new).with_metadata(metadata)
    store.publish_table(path, [shard().drop_columns("sampling")], earlier)
    table = read_shard(store, GROUP, 4, 6, IDS, FINGERPRINT, "8 pairs")
    assert table.schema.equals(SHARD)
    assert table["sampling"].null_count == 3
    assert table.drop_columns("sampling").equals(shard().drop_columns("sampling"))


@pytest.mark.parametrize("change", [{"rows": b"three"}, {"rows": b"\xff"}, {"group": b"\xff"}])
def test_a_shard_that_says_nonsense_of_itself_is_refused(store, change):
    path = published(store)
    metadata = dict(pq.read_schema(io.BytesIO(store.read(path))).metadata)
    metadata |= {f"shapray.{key}".encode(): value for key, value in change.items()}
    store.publish_table(path, [shard()], SHARD.with_metadata(metadata))
    with pytest.raises(UnsoundShard):
        read_shard(store, GROUP, 4, 6, IDS, FINGERPRINT)


def test_a_truncated_shard_is_refused(store):
    path = published(store)
    data = store.read(path)
    for length in (0, 3, len(data) // 2, len(data) - 1):
        store.publish(path, data[:length])
        with pytest.raises(UnsoundShard, match="torn or damaged"):
            read_shard(store, GROUP, 4, 6, IDS, FINGERPRINT)


def test_flipped_bytes_never_give_other_values(store):
    path = published(store)
    data = store.read(path)
    sound = read_shard(store, GROUP, 4, 6, IDS, FINGERPRINT)
    refused = 0
    for position in range(0, len(data), 7):
        changed = bytearray(data)
        changed[position] ^= 0x5A
        store.publish(path, bytes(changed))
        try:
            assert read_shard(store, GROUP, 4, 6, IDS, FINGERPRINT).equals(sound)
        except UnsoundShard:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"fingerprint": "0" * 64}, "fingerprint is ffffffffffff"),
        ({"image_ids": ["cat-1", "dog-2", "ship/4"]}, "other images"),
        ({"image_ids": ["cat-1", "ship/3", "dog-2"]}, "other images"),
        ({"n_units": 5}, "has .4. entries; the group has 5"),
        ({"price": "4 pairs"}, "sampled by 8 pairs, this run's price is 4 pairs"),
    ],
)
def test_a_sound_shard_of_something_else_is_refused(store, change, why):
    published(store)
    asked = {"n_units": 4, "first": 6, "image_ids": IDS, "fingerprint": FINGERPRINT} | change
    with pytest.raises(UnsoundShard, match=why):
        read_shard(store, GROUP, **asked)


def test_a_shard_under_another_groups_name_is_refused(store):
    path = published(store)
    store.publish(shard_path("layer2", 6, 9), store.read(path))
    with pytest.raises(UnsoundShard, match=r"of group 'layer1\.0\.conv1'"):
        read_shard(store, "layer2", 4, 6, IDS, FINGERPRINT)


def test_an_absent_shard_is_refused(store):
    assert list_shards(store) == set()
    with pytest.raises(UnsoundShard, match="not there"):
        read_shard(store, GROUP, 4, 6, IDS, FINGERPRINT)


@pytest.mark.parametrize("group", ["../../etc", "/root", "a/b", "..", "x%2F..", "naïve ü", "a\\b"])
def test_no_group_name_leaves_the_shard_folder(tmp_path, group):
    store = RunDirectory(str(tmp_path / "run"))
    publish_shard(store, group, 0, 3, shard(group), FINGERPRINT, "8 pairs")
    (folder,) = (tmp_path / "run" / "shards").iterdir()
    assert folder.name.startswith("group=")
    assert [path.parent for path in tmp_path.rglob("*.parquet")] == [folder]
    assert list_shards(store) == {shard_path(group, 0, 3)}
    assert read_shard(store, group, 4, 0, IDS, FINGERPRINT).num_rows == 3


def test_nothing_is_left_under_the_final_name_when_writing_fails(tmp_path):
    store = RunDirectory(str(tmp_path / "run"))
    store.publish("plan.json", b"{}")
    blocked = tmp_path / "run" / "prune"
    blocked.write_text("a file where a folder should be")
    with pytest.raises(StorageError, match=r"cannot write .*prune/plan\.json"):
        store.publish("prune/plan.json", b"{}")
    assert sorted(os.listdir(tmp_path / "run")) == ["plan.json", "prune"]


def test_publishing_again_replaces_the_whole_file(store):
    store.publish_json("run.json", {"a": list(range(100))})
    store.publish_json("run.json", {"b": 1})
    assert store.read_json("run.json") == {"b": 1}
    assert store.read_json("other.json") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 10**5, "is not JSON"),
        (b"[1, 2]", r"holds list '\[1, 2\]', not a JSON object"),
        (b"null", "holds NoneType 'None', not a JSON object"),
    ],
)
def test_a_run_json_that_is_no_json_object_is_named(store, content, message):
    store.publish("run.json", content)
    with pytest.raises(JobError, match=rf"run\.json {message}"):
        store.read_json("run.json")


def test_what_json_does_not_know_is_published_as_text(store):
    store.publish_json("run.json", {"kwargs": {"since": datetime.date(2020, 1, 2)}})
    assert store.read_json("run.json") == {"kwargs": {"since": "2020-01-02"}}


@pytest.mark.parametrize("url", ["nosuch://x/y", "github://x", "zip://nowhere"])
def test_a_file_system_that_cannot_be_had_is_the_users_error(url):
    with pytest.raises(JobError, match=f"output: '{url}' is not a folder or URL"):
        RunDirectory(url)


def test_a_relative_folder_stays_the_same_in_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = RunDirectory("runs/one")
    monkeypatch.chdir("/")
    pickle.loads(pickle.dumps(store)).publish("run.json", b"{}")
    assert (tmp_path / "runs" / "one" / "run.json").is_file()


def test_of_several_creators_one_succeeds(store):
    assert store.create("claim.json", b"first")
    assert not store.create("claim.json", b"second")
    assert store.read("claim.json") == b"first"
    store.remove("claim.json")
    store.remove("claim.json")
    assert store.create("claim.json", b"third")


def test_rows_and_columns_of_a_table_are_read_without_the_rest(store):
    """What is damaged elsewhere in the file is not looked at."""
    parts = [
        pa.table({"group": [name] * 5000, "mean": np.random.default_rng(n).normal(size=5000)})
        for n, name in enumerate(("a", "b", "c"))
    ]
    store.publish_table("table.parquet", parts, parts[0].schema)
    of_b = pc.field("group") == "b"
    found = store.read_table("table.parquet", ["mean"], of_b)
    assert found.equals(parts[1].select(["mean"]))
    data = store.read("table.parquet")
    for damaged in (1000, len(data) - 20000):  # in what is of a, and of c
        data = data[:damaged] + b"damaged" + data[damaged + 7 :]
    store.publish("table.parquet", data)
    assert store.read_table("table.parquet", ["mean"], of_b).equals(found)
    with pytest.raises(StorageError, match=r"cannot read .*table\.parquet"):
        store.read_table("table.parquet", ["mean"])
    with pytest.raises(StorageError, match=r"nothing\.parquet: no such file"):
        store.read_table("nothing.parquet", ["mean"])
