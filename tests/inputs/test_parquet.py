"""Images in Parquet files: rows, columns of whatever type, folders of files."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pictures import KEY, encoded, parquet, pixels, scaled, write_parquet

from shapray.errors import JobError


def test_parquet_rows(tmp_path):
    images = parquet(write_parquet(tmp_path / "x.parquet"))
    assert images.ids == [f"img{i:02d}" for i in range(12)]
    assert images.labels.dtype == torch.int64
    assert images.labels.tolist() == [0, 1, 2] * 4
    batch = images.load(3, 9)  # over three row groups
    assert batch.dtype == torch.float32
    assert torch.equal(batch, torch.stack([scaled(i) for i in range(3, 9)]))


def test_where_and_row_numbers_as_ids(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", image_id=None)
    images = parquet(path, where={"fold": "a", "label": 1})
    assert images.ids == ["1", "7"]
    assert torch.equal(images.load(1, 2)[0], scaled(7))


def test_unlabelled_parquet_of_nothing_but_images(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", image_id=None, label=None, fold=None)
    images = parquet(path, label_column=None, limit=5)
    assert images.labels is None
    assert len(images) == 5


def test_folder_of_parquet_files_on_another_filesystem():
    import fsspec  # noqa: PLC0415

    for part in range(2):
        table = pa.table(
            {"label": [part] * 3, "image": [encoded(pixels(3 * part + i)) for i in range(3)]}
        )
        with fsspec.open(f"memory://sets/part{part}.parquet", "wb") as file:
            pq.write_table(table, file, row_group_size=2)
    images = parquet("memory://sets")
    assert images.ids == list("012345")
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(images.load(2, 5), torch.stack([scaled(i) for i in (2, 3, 4)]))
    assert parquet("memory://sets/*1.parquet").labels.tolist() == [1, 1, 1]


def test_hugging_face_image_column(tmp_path):
    column = [{"bytes": encoded(pixels(i)), "path": None} for i in range(12)]
    images = parquet(write_parquet(tmp_path / "x.parquet", image=column))
    assert torch.equal(images.load(5, 6)[0], scaled(5))


def test_only_the_row_groups_needed_are_read(tmp_path):
    """A torn row group that no image of the chunk lies in does not matter."""
    path = Path(write_parquet(tmp_path / "x.parquet"))
    column = pq.ParquetFile(path).metadata.row_group(2).column(3)
    with path.open("r+b") as file:
        file.seek(column.dictionary_page_offset or column.data_page_offset)
        file.write(b"\xff" * column.total_compressed_size)
    images = parquet(path)
    assert torch.equal(images.load(0, 8)[7], scaled(7))
    with pytest.raises(OSError, match=r".+"):
        images.load(8, 9)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"image_column": "picture"},
            "image_column: .*no column 'picture'; columns there: image_id, label, fold, image",
        ),
        ({"image_column": "fold"}, "'fold' of .* is string; expected encoded"),
        ({"label_column": "class"}, "label_column: .*no column 'class' .label_column: null"),
        ({"label_column": "fold"}, "image 'img00' has label 'b'; labels are integers"),
        ({"id_column": "name"}, "id_column: .*no column 'name'"),
        ({"id_column": "fold"}, "ids must be unique; 'b' names 6 images"),
        ({"where": {"split": "a"}}, "where: .*no column 'split'"),
        ({"where": {"fold": "c"}}, r"where\.fold: no row has 'c'; found \['b', 'a'\]"),
        ({"where": {"fold": 1}}, r"where\.fold: the column is string; it cannot equal 1"),
    ],
)
def test_columns_that_are_not_there(tmp_path, keys, words):
    with pytest.raises(JobError, match=f"{KEY}.*{words}"):
        parquet(write_parquet(tmp_path / "x.parquet"), **keys)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(JobError, match=r"path: .*/no\.parquet: no such file"):
        parquet(tmp_path / "no.parquet")
    (tmp_path / "text.parquet").write_text("not one of those")
    with pytest.raises(JobError, match=r"text\.parquet is not a Parquet file"):
        parquet(tmp_path / "text.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(JobError, match=r"empty holds no \.parquet file"):
        parquet(tmp_path / "empty")
    with pytest.raises(JobError, match=r"cannot open nowhere://\*\*\*@host/x") as caught:
        parquet("nowhere://me:hunter2@host/x.parquet")
    assert "hunter2" not in str(caught.value)


# -- images


def stored(images, kind="binary"):
    """A Hugging Face image column."""
    return pa.array(images, pa.struct([("bytes", kind), ("path", "string")]))


@pytest.mark.parametrize(
    "kind", [pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())]
)
def test_encoded_images_of_any_binary_type(tmp_path, kind):
    column = pa.array([encoded(pixels(i)) for i in range(12)]).cast(kind)
    images = parquet(write_parquet(tmp_path / "x.parquet", image=column))
    assert torch.equal(images.load(5, 6)[0], scaled(5))


def test_a_row_without_an_image_is_named(tmp_path):
    column = [encoded(pixels(i)) if i != 6 else None for i in range(12)]
    path = write_parquet(tmp_path / "x.parquet", image=column)
    with pytest.raises(JobError, match=r"image_column: .*/x\.parquet, row 6 has no image \(null\)"):
        parquet(path).content_digests()
    assert len(parquet(path, where={"fold": "a"})) == 6  # without that row


def test_images_of_which_only_the_path_is_stored(tmp_path):
    column = stored([{"bytes": None, "path": f"images/{i}.png"} for i in range(12)])
    with pytest.raises(
        JobError, match=r"row 0 holds no image: .* only a path .*'images/0\.png'.*embed the files"
    ):
        parquet(write_parquet(tmp_path / "x.parquet", image=column))
    nothing = stored([None] * 12)
    with pytest.raises(JobError, match=r"row 0 has no image \(null\)"):
        parquet(write_parquet(tmp_path / "x.parquet", image=nothing))
    text = stored([{"bytes": "x", "path": None}] * 12, "string")
    with pytest.raises(JobError, match="expected encoded images"):
        parquet(write_parquet(tmp_path / "x.parquet", image=text))


# -- files of one folder that differ


def test_ids_of_different_types_become_text(tmp_path):
    write_parquet(tmp_path / "a.parquet", n=3)
    write_parquet(tmp_path / "b.parquet", n=3, image_id=[7, 8, 9])
    assert parquet(tmp_path).ids == ["img00", "img01", "img02", "7", "8", "9"]


def test_columns_of_one_meaning_and_different_types_are_one(tmp_path):
    folds, labels = pa.array(["a", "b", "a"]), pa.array([0, 1, 2])
    for name, fold, label in (
        ("a", folds, labels),
        ("b", folds.dictionary_encode(), labels.cast(pa.uint8())),
        ("c", folds.cast(pa.large_string()), labels.dictionary_encode()),
    ):
        ids = [f"{name}{i}" for i in range(3)]
        write_parquet(tmp_path / f"{name}.parquet", n=3, image_id=ids, fold=fold, label=label)
    images = parquet(tmp_path, where={"fold": "a"})
    assert images.ids == ["a0", "a2", "b0", "b2", "c0", "c2"]
    assert images.labels.tolist() == [0, 2] * 3
    assert torch.equal(images.load(2, 3)[0], scaled(0))


def test_types_that_do_not_go_together_are_named_with_their_files(tmp_path):
    write_parquet(tmp_path / "a.parquet", n=3)
    write_parquet(tmp_path / "b.parquet", n=3, image_id=list("xyz"), label=["0", "1", "2"])
    with pytest.raises(
        JobError, match=r"column 'label' .*: int64 in .*/a\.parquet, string in .*/b\.parquet"
    ):
        parquet(tmp_path)


def test_ids_that_some_files_lack_are_missed(tmp_path):
    write_parquet(tmp_path / "a.parquet", n=3)
    write_parquet(tmp_path / "b.parquet", n=3, image_id=None)
    with pytest.raises(JobError, match=r"id_column: row 3 has no id \(null\)"):
        parquet(tmp_path)
    assert parquet(tmp_path, id_column=None).ids == list("012345")


def test_integer_ids_can_be_selected_by(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", n=3, image_id=[5, 6, 7])
    assert parquet(path, where={"image_id": 6}).ids == ["6"]


# -- columns that are names of folders


def partitioned(root, **columns):
    """Six images of three classes in two files a class, as Spark and pyarrow write them."""
    for label in range(3):
        for part in ("cal", "eva"):
            write_parquet(
                root / f"split={part}" / f"label={label}" / "0.parquet",
                n=1,
                **{"image_id": [f"{part}{label}"], "label": None, "fold": None} | columns,
            )
    return root


def test_folder_names_are_columns(tmp_path):
    images = parquet(partitioned(tmp_path), where={"split": "cal"})
    assert images.ids == ["cal0", "cal1", "cal2"]
    assert images.labels.tolist() == [0, 1, 2]
    assert parquet(tmp_path, where={"label": 1}).ids == ["cal1", "eva1"]
    assert parquet(tmp_path / "split=eva").labels.tolist() == [0, 1, 2]
    assert parquet(tmp_path / "*" / "*" / "0.parquet", where={"split": "eva", "label": 2}).ids == [
        "eva2"
    ]
    with pytest.raises(JobError, match=r"where\.split: no row has 'test'; found \['cal', 'eva'\]"):
        parquet(tmp_path, where={"split": "test"})
    with pytest.raises(JobError, match=r"no column 'fold'; columns there: .*split, label"):
        parquet(tmp_path, where={"fold": "a"})


def test_what_is_in_the_file_comes_before_the_names_of_its_folders(tmp_path):
    assert parquet(partitioned(tmp_path, label=[7])).labels.tolist() == [7] * 6


def test_folder_names_are_numbers_only_if_all_are(tmp_path):
    for value in ("1", "-2", "1%2F2", "__HIVE_DEFAULT_PARTITION__"):
        write_parquet(tmp_path / f"fold={value}" / "x.parquet", n=1, image_id=[value], fold=None)
    assert parquet(tmp_path, where={"fold": "1/2"}).ids == ["1%2F2"]
    assert parquet(tmp_path, where={"fold": "1"}).ids == ["1"]
    (tmp_path / "fold=1%2F2" / "x.parquet").unlink()
    assert parquet(tmp_path, where={"fold": -2}).ids == ["-2"]


def test_links_to_folders_of_parquet_files_are_followed(tmp_path):
    write_parquet(tmp_path / "elsewhere" / "x.parquet")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "itself").symlink_to(tmp_path / "set")
    assert len(parquet(tmp_path / "set")) == 12
