"""Reports of runs that lack a part, and messages about those that are damaged."""

import json
import re

import pyarrow as pa
import pytest
from report.reading import Page
from simulated_run import CLASSES, record, simulated_run

from shapray.errors import JobError, StorageError
from shapray.report.__main__ import main
from shapray.report.page import report
from shapray.storage.explained import TABLES
from shapray.storage.run_directory import RunDirectory

EXPLAINED = [name for name in TABLES if name not in ("extremes", "kernels")]
FILES = [
    "groups.parquet",
    "scores.parquet",
    "prune/plan.json",
    "class_scores.parquet",
    "prune/curve.parquet",
    "prune/metrics.json",
]
SMALL = {"conv1": 6, "fc1": 5}


@pytest.fixture
def store(tmp_path):
    return simulated_run(str(tmp_path), SMALL, CLASSES[:3], side=8)


@pytest.mark.parametrize("absent", [EXPLAINED, EXPLAINED[::2], EXPLAINED[1::2]])
def test_tables_that_are_not_there_are_named_with_the_command_that_makes_them(store, absent):
    for table in absent:
        store.remove(f"explain/{table}.parquet")
    page = Page(report(store))
    for table in EXPLAINED:
        assert (f"There is no file explain/{table}.parquet" in page.text) == (table in absent)
    assert "This makes it: python -m shapray.run JOB.yaml" in page.text


@pytest.mark.parametrize("absent", [FILES, FILES[::2], FILES[1::2]])
def test_files_of_the_run_that_are_not_there_are_named(store, absent):
    for path in absent:
        store.remove(path)
    page = Page(report(store))
    for path in FILES:
        assert (f"There is no file {path}" in page.text) == (path in absent)


def test_a_table_without_rows_is_no_error(store):
    for table, schema in TABLES.items():
        store.publish_table(f"explain/{table}.parquet", [], schema)
    page = Page(report(store))
    assert "No unit has a score below 0" in page.text
    assert "no image of these has few enough active units" in page.text
    assert "There is no file" not in page.text


def test_draws_of_groups_that_are_not_cut_tell_nothing(store):
    rows = [row | {"n_cut": 0} for row in store.read_table("explain/flips.parquet").to_pylist()]
    table = pa.Table.from_pylist(rows, schema=TABLES["flips"])
    store.publish_table("explain/flips.parquet", [table], table.schema)
    page = Page(report(store))
    assert "No group that was cut has images with exact values" in page.text
    assert not any(one.startswith("Share of draws") for one in page.figures)


def test_a_run_that_was_stopped_before_its_cut_says_how_far_it_came(tmp_path):
    store = RunDirectory(str(tmp_path))
    content = record("early", [], 3)
    for stage in ("score", "aggregate", "prune", "evaluate"):
        content["stages"][stage] = {"state": "waiting"}
    store.publish_json("run.json", content)
    page = Page(report(store))
    assert "The run has come as far as its stage “score”." in page.text
    assert "The run is not finished: score, aggregate, prune, evaluate." in page.text


def test_numbers_that_are_not_finite_or_not_known_are_left_out(store):
    metrics = store.read_json("prune/metrics.json")
    for network in (metrics["cut"], metrics["random"][0]):
        network |= {"loss": None, "loss_low": None, "loss_high": None}
    store.publish_json("prune/metrics.json", metrics)
    for path in ("explain/units.parquet", "explain/negatives.parquet", "scores.parquet"):
        table = store.read_table(path)
        for field in table.schema:
            if field.nullable and pa.types.is_floating(field.type):
                at = table.schema.get_field_index(field.name)
                table = table.set_column(at, field, pa.nulls(table.num_rows, field.type))
        store.publish_table(path, [table], table.schema)
    page = Page(report(store))
    for said in (page.text, *page.figures):
        assert not re.search(r"\bnan\b", said)
        assert "None" not in said


def test_a_table_of_an_earlier_version_may_lack_what_can_be_null(store):
    table = store.read_table("scores.parquet").drop_columns(["total_error", "image_error"])
    store.publish_table("scores.parquet", [table], table.schema)
    assert "5 units" in Page(report(store)).text


@pytest.mark.parametrize(
    "path", ["scores.parquet", "class_scores.parquet", "explain/cards.parquet"]
)
def test_a_damaged_table_is_an_error_that_names_it(store, path):
    data = store.read(path)
    store.publish(path, data[: len(data) // 2])
    with pytest.raises(StorageError, match=f"{path} is damaged or not one of this program's"):
        report(store)


def test_a_table_with_flipped_bytes_is_an_error_that_names_it(store):
    data = bytearray(store.read("scores.parquet"))
    data[len(data) // 3 : len(data) // 3 + 20] = b"\xff" * 20
    store.publish("scores.parquet", bytes(data))
    with pytest.raises(StorageError, match=r"scores\.parquet is damaged"):
        report(store)


def test_a_table_with_other_columns_is_an_error_that_names_the_column(store):
    other = pa.table({"group": ["conv1"]})
    store.publish_table("explain/sizes.parquet", [other], other.schema)
    with pytest.raises(StorageError, match=r"sizes\.parquet .* it has no column 'marginal'"):
        report(store)


def test_a_picture_that_is_none_is_an_error_that_names_table_and_image(store):
    table = store.read_table("explain/cards.parquet")
    at = table.schema.get_field_index("picture")
    broken = pa.array([b"no picture"] * table.num_rows)
    table = table.set_column(at, table.schema.field(at), broken)
    store.publish_table("explain/cards.parquet", [table], table.schema)
    with pytest.raises(StorageError, match=r"cards\.parquet is damaged: the picture of 'image-"):
        report(store)


@pytest.mark.parametrize(
    ("path", "change", "said"),
    [
        ("prune/metrics.json", {"after": {}}, "'after.top1' is missing"),
        ("prune/plan.json", {"groups": {"conv1": 3}}, "'groups.conv1' is '3'"),
        ("run.json", {"stages": []}, "'stages' is '\\[\\]'"),
    ],
)
def test_a_json_file_with_other_content_is_an_error_that_names_file_and_key(
    store, path, change, said
):
    store.publish_json(path, store.read_json(path) | change)
    with pytest.raises(JobError, match=f"{path} is damaged or not one of this program's: {said}"):
        report(store)


def test_the_command_writes_the_page_and_says_where(store, capsys):
    assert main([store.root]) == 0
    assert capsys.readouterr().out.strip() == f"{store.root}/report.html"
    assert store.read("report.html").startswith(b"<!DOCTYPE html>")


def test_the_command_refuses_a_folder_without_a_run(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "run.json: no such file; a report needs the output folder of a run" in (
        capsys.readouterr().err
    )
    assert not list(tmp_path.iterdir())


def test_the_command_refuses_a_damaged_file_without_a_traceback(store, capsys):
    store.publish("run.json", b"{")
    assert main([store.root]) == 2
    said = capsys.readouterr().err
    assert "run.json is not JSON" in said
    assert "Traceback" not in said


def test_further_cuts_stand_in_the_verdict(store):
    metrics = json.loads(store.read("prune/metrics.json"))
    store.publish_json("prune/smaller/metrics.json", metrics | {"criterion": "obs"})
    assert "smaller obs least_squares 50.0%" in Page(report(store)).text
