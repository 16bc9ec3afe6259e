"""Image sets: sources, subsets, transforms, digests, and the words for what is wrong."""

import io
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image as Pillow

from shapray.config import Images, Transform
from shapray.errors import JobError
from shapray.inputs.decode import FORMATS
from shapray.inputs.images import check_disjoint, check_labels, open_images

ROOT = Path(__file__).parents[2]
KEY = "data.calibration"
GREY = Transform(mode="L")


def pixels(number, height=6, width=5, channels=3):
    random = np.random.default_rng(number)
    return random.integers(0, 256, (height, width, channels), dtype=np.uint8).squeeze()


def encoded(array, kind="PNG"):
    buffer = io.BytesIO()
    Pillow.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def write_parquet(path, n=12, **columns):
    """n colour images in row groups of 4, three classes; `columns` replaces or (None) drops."""
    table = {
        "image_id": [f"img{i:02d}" for i in range(n)],
        "label": [i % 3 for i in range(n)],
        "fold": ["a" if i % 2 else "b" for i in range(n)],
        "image": [encoded(pixels(i)) for i in range(n)],
    } | columns
    pq.write_table(
        pa.table({name: values for name, values in table.items() if values is not None}),
        path,
        row_group_size=4,
    )
    return str(path)


def parquet(path, transform=None, key=KEY, **keys):
    return open_images(
        Images(source="parquet", path=str(path), **keys), transform or Transform(), key
    )


def make_folder(root, classes=("cat", "dog"), n=3):
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(n):
            (root / name / f"{i}.png").write_bytes(encoded(pixels(10 * c + i)))
    return root


def scaled(number, **size):
    return torch.from_numpy(pixels(number, **size)).permute(2, 0, 1).float() / 255


# -- Parquet


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


def test_jpeg_and_grey():
    smooth = np.linspace(0, 255, 64, dtype=np.uint8).reshape(8, 8)
    colour = np.stack([smooth] * 3, axis=2)
    for data in (encoded(smooth, "JPEG"), encoded(colour, "JPEG"), encoded(colour)):
        for mode, n_channels in (("L", 1), ("RGB", 3)):
            found = callable_set([data], Transform(mode=mode)).load(0, 1)[0]
            assert found.shape == (n_channels, 8, 8)
            assert (found - torch.from_numpy(smooth) / 255).abs().max() < 0.02


# -- image folder


def test_imagefolder(tmp_path):
    root = make_folder(tmp_path / "set[1]")  # a name that looks like a pattern
    (root / "dog" / "notes.txt").write_text("not an image")
    (root / ".cache").mkdir()
    (root / ".cache" / "x.png").write_bytes(b"")
    images = open_images(Images(source="imagefolder", path=str(root)), Transform(), KEY)
    assert images.ids == [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(3)]
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(images.load(3, 5), torch.stack([scaled(10), scaled(11)]))


def test_every_listed_ending_is_read(tmp_path):
    (tmp_path / "cat").mkdir()
    for kind, endings in FORMATS.items():
        for ending in endings:
            (tmp_path / "cat" / f"x{ending}").write_bytes(encoded(pixels(0), kind))
    images = open_images(Images(source="imagefolder", path=str(tmp_path)), Transform(), KEY)
    assert len(images) == sum(map(len, FORMATS.values()))
    assert images.load(0, len(images)).shape == (len(images), 3, 6, 5)


def test_imagefolder_mistakes(tmp_path):
    root = make_folder(tmp_path / "set")
    section = Images(source="imagefolder", path=str(root))
    (root / "eel").mkdir()
    with pytest.raises(JobError, match=r"class folder 'eel' holds no image .* 1 of 3"):
        open_images(section, Transform(), KEY)
    (root / "stray.png").write_bytes(encoded(pixels(99)))
    with pytest.raises(JobError, match=r"1 images lie in no class folder, e\.g\. stray\.png"):
        open_images(section, Transform(), KEY)
    unlabelled = section.model_copy(update={"label_column": None})
    images = open_images(unlabelled, Transform(), KEY)
    assert images.labels is None
    assert "stray.png" in images.ids


# -- data sets and callables


def given_images(items):
    return items


def callable_set(items, transform=None, **keys):
    section = Images(
        source="callable", factory=f"{__name__}:given_images", kwargs={"items": items}, **keys
    )
    return open_images(section, transform or Transform(), KEY)


def test_callable_forms_agree():
    array = pixels(0)
    chw = torch.from_numpy(array).permute(2, 0, 1)
    images = callable_set(
        [(Pillow.fromarray(array), 0), (array, 1), (chw, 2), (chw / 255, torch.tensor(3))],
        Transform(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1)),
    )
    batch = images.load(0, 4)
    assert images.labels.tolist() == [0, 1, 2, 3]
    assert all(torch.equal(image, batch[0]) for image in batch)
    expected = (chw / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.2, 0.2, 0.1]
    ).view(3, 1, 1)
    torch.testing.assert_close(batch[0], expected)


def test_a_data_set_whose_items_fail_is_named():
    said = r"item 0 of what .*given_images made \(a dict of 1\) cannot be read: KeyError: 0"
    with pytest.raises(JobError, match=said):
        callable_set({"a": pixels(0)})


def test_callable_of_images_only_has_no_labels():
    assert callable_set([pixels(0), pixels(1)]).labels is None
    assert callable_set([(pixels(0), 5)], label_column=None).labels is None


def test_callable_mistakes():
    with pytest.raises(JobError, match=r"image '1' has label 'dog'; labels are integers"):
        callable_set([(pixels(0), 1), (pixels(1), "dog")])
    with pytest.raises(JobError, match=r"factory: .* gave a int; a sequence"):
        callable_set(3)
    with pytest.raises(JobError, match=r"image '0' .*\(1, 6, 5\); mode RGB needs \(3"):
        callable_set([pixels(0, channels=1)])
    with pytest.raises(JobError, match="no images there"):
        callable_set([])


def test_torchvision_data_sets(tmp_path):
    section = Images(
        source="torchvision",
        factory="FakeData",
        kwargs={"size": 8, "image_size": [3, 10, 10], "num_classes": 4},
    )
    images = open_images(section, Transform(), KEY)
    assert images.load(0, 8).shape == (8, 3, 10, 10)
    assert images.labels.max() < 4
    missing = Images(source="torchvision", factory="CIFAR10", kwargs={"root": str(tmp_path)})
    with pytest.raises(JobError, match=r"CIFAR10.*failed: Dataset not found"):
        open_images(missing, Transform(), KEY)
    assert not list(tmp_path.iterdir())  # nothing was downloaded
    unknown = Images(source="torchvision", factory="CIFAR11")
    with pytest.raises(JobError, match=r"has no 'CIFAR11'; close to it: .*CIFAR10"):
        open_images(unknown, Transform(), KEY)


# -- subsets


def test_limit_is_balanced_exact_and_in_order(tmp_path):
    labels = [0] * 20 + [1] * 3 + [2] * 20 + [3] * 20
    path = write_parquet(
        tmp_path / "x.parquet",
        n=63,
        label=labels,
        image=[encoded(pixels(i % 7)) for i in range(63)],
    )
    images = parquet(path, limit=24)
    assert images.labels.bincount().tolist() == [7, 3, 7, 7]
    assert images.ids == sorted(images.ids)
    assert parquet(path, limit=25).labels.bincount().sum() == 25
    assert len(parquet(path, limit=1000)) == 63


def test_limit_depends_on_seed_ids_and_labels_only(tmp_path):
    order = np.random.default_rng(0).permutation(12)
    straight = write_parquet(tmp_path / "straight.parquet")
    mixed = write_parquet(
        tmp_path / "mixed.parquet",
        image_id=[f"img{i:02d}" for i in order],
        label=[int(i) % 3 for i in order],
    )
    chosen = {seed: set(parquet(straight, limit=6, seed=seed).ids) for seed in range(5)}
    assert len({frozenset(ids) for ids in chosen.values()}) > 1
    assert all(set(parquet(mixed, limit=6, seed=seed).ids) == chosen[seed] for seed in chosen)


# -- transform


def test_resize_and_crop():
    image = np.kron(np.arange(8, dtype=np.uint8)[None, :] * 30, np.ones((16, 2), np.uint8))
    wide = np.concatenate([image, image], axis=1)  # 16 x 32
    assert callable_set([wide], Transform(mode="L", resize=8)).load(0, 1).shape[2:] == (8, 16)
    assert callable_set([wide], Transform(mode="L", resize=(4, 6))).load(0, 1).shape[2:] == (4, 6)
    halved = callable_set([wide], Transform(mode="L", resize=8, crop=6)).load(0, 1)[0, 0]
    assert halved.shape == (6, 6)
    reference = Pillow.fromarray(wide).resize((16, 8), Pillow.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(reference)[1:7, 5:11]).float() / 255
    assert (halved - expected).abs().max() <= 1.01 / 255  # antialiased, as Pillow's


def test_sizes_that_do_not_fit():
    small, large = pixels(0), pixels(1, height=9)
    images = callable_set([small, small, large])
    with pytest.raises(JobError, match=r"'0' is 6x5, image '2' .* is 9x5 .*resize"):
        images.load(2, 3)
    with pytest.raises(JobError, match=r"crop: image '0' .* 6x5 .* 7 does not fit"):
        callable_set([small], Transform(crop=7))


# -- processes


def test_pickles_small_and_works_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    write_parquet(
        tmp_path / "here" / "x.parquet",
        n=20,
        image=[encoded(pixels(i, height=60, width=50)) for i in range(20)],
    )
    make_folder(tmp_path / "here" / "folder")
    monkeypatch.chdir(tmp_path / "here")
    sets = [
        parquet("x.parquet"),
        open_images(Images(source="imagefolder", path="folder"), Transform(), KEY),
    ]
    before = [images.load(1, 3) for images in sets]
    digests = [images.digest() for images in sets]
    sent = pickle.dumps(sets)
    assert len(sent) < 6000
    script = """
        import pickle, sys, torch
        sets = pickle.load(sys.stdin.buffer)
        found = [images.load(1, 3) for images in sets], [images.digest() for images in sets]
        sys.stdout.buffer.write(pickle.dumps(found))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        input=sent,
        cwd=tmp_path / "there",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        check=True,
    )
    after, digests_after = pickle.loads(done.stdout)
    assert all(torch.equal(one, other) for one, other in zip(before, after))
    assert digests_after == digests


# -- digests and checks


def test_digest_changes_with_what_reaches_the_network(tmp_path):
    path = write_parquet(tmp_path / "x.parquet")
    other_pixel = [encoded(pixels(i if i != 11 else 99)) for i in range(12)]
    variants = [
        parquet(path),
        parquet(path, limit=11),
        parquet(path, Transform(mean=(0.5, 0.5, 0.5))),
        parquet(write_parquet(tmp_path / "y.parquet", label=[0] * 12)),
        parquet(write_parquet(tmp_path / "z.parquet", image=other_pixel)),
    ]
    assert len({images.digest() for images in variants}) == len(variants)
    copy = write_parquet(tmp_path / "copy.parquet", fold=None)
    assert parquet(copy).digest() == parquet(path).digest()


def test_overlap_is_found_by_content(tmp_path):
    calibration = parquet(write_parquet(tmp_path / "x.parquet"))
    check_disjoint(
        calibration,
        parquet(
            write_parquet(
                tmp_path / "y.parquet", image=[encoded(pixels(100 + i)) for i in range(12)]
            )
        ),
    )
    make_folder(tmp_path / "set", n=2)  # pixels 0, 1, 10, 11
    evaluation = open_images(
        Images(source="imagefolder", path=str(tmp_path / "set")), Transform(), "data.evaluation"
    )
    with pytest.raises(
        JobError,
        match=r"data\.calibration and data\.evaluation share 4 images \('img00' = 'cat/0\.png'",
    ):
        check_disjoint(calibration, evaluation)


def test_labels_out_of_range(tmp_path):
    images = parquet(write_parquet(tmp_path / "x.parquet"))
    check_labels(images, 3, KEY)
    with pytest.raises(JobError, match=r"image 'img02' has label 2; .* 2 outputs.* 0\.\.1 \(4 of"):
        check_labels(images, 2, KEY)
    for wrong in (-1, None):
        path = write_parquet(tmp_path / "y.parquet", label=[0] * 11 + [wrong])
        with pytest.raises(JobError, match=rf"image 'img11' has label {wrong}"):
            parquet(path)


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


@pytest.mark.parametrize("torn", [b"", b"no image at all", encoded(pixels(0), "JPEG")[:-40]])
def test_image_that_does_not_decode_is_named(tmp_path, torn):
    content = [encoded(pixels(i)) for i in range(12)]
    content[6] = torn
    images = parquet(write_parquet(tmp_path / "x.parquet", image=content))
    with pytest.raises(JobError, match=r"image 'img06' \(.*/x\.parquet, row 6\) does not decode"):
        images.load(4, 8)


# -- what is shipped


def test_shipped_digits():
    path = ROOT / "jobs/data/digits.parquet"
    sizes = {"train": 1197, "calibration": 200, "evaluation": 400}
    sets = {name: parquet(path, GREY, name, where={"split": name}) for name in sizes}
    assert {name: len(images) for name, images in sets.items()} == sizes
    assert sets["calibration"].labels.bincount().tolist() == [20] * 10
    assert sets["evaluation"].labels.bincount().tolist() == [40] * 10
    contents = [set(images.content_digests()) for images in sets.values()]
    assert len(set.union(*contents)) == 1797
    check_disjoint(sets["calibration"], sets["evaluation"])
    found = sets["evaluation"].load(0, 400)
    assert found.shape == (400, 1, 8, 8)
    assert float(found.max()) == pytest.approx(240 / 255)
