"""Image sets: subsets, transforms, digests, other processes."""

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
from pictures import (
    KEY,
    callable_set,
    encoded,
    make_folder,
    parquet,
    pixels,
    write_parquet,
)
from PIL import Image as Pillow

from shapray.config import Images, Transform
from shapray.errors import JobError
from shapray.inputs.digest import digest
from shapray.inputs.images import check_disjoint, check_labels, open_images

ROOT = Path(__file__).parents[2]
GREY = Transform(mode="L")


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


def test_with_images_to_spare_the_first_are_of_classes_drawn_from_all(tmp_path):
    path = write_parquet(
        tmp_path / "x.parquet",
        n=120,
        label=[i // 3 for i in range(120)],  # 40 classes of 3 images
        image=[encoded(pixels(i % 7)) for i in range(120)],
    )
    images = parquet(path, limit="auto")
    turns = images.labels.view(3, 40)
    assert all(len(set(turn.tolist())) == 40 for turn in turns)
    assert turns[0, :10].max() > 20  # not those with the lowest numbers
    assert set(images.ids[:40]) == set(parquet(path, limit=40).ids)


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
    with pytest.raises(JobError, match=r"image '0' .* 6x5 .* crop; a side of 7 does not fit"):
        callable_set([small], Transform(crop=7))


@pytest.mark.slow
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
        assert "torchvision" not in sys.modules, "every worker would wait for it"
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
    check_labels(images.labels, images.ids, 3, KEY)
    with pytest.raises(JobError, match=r"image 'img02' has label 2; .* 2 outputs.* 0\.\.1 \(4 of"):
        check_labels(images.labels, images.ids, 2, KEY)
    for wrong in (-1, None):
        path = write_parquet(tmp_path / "y.parquet", label=[0] * 11 + [wrong])
        with pytest.raises(JobError, match=rf"image 'img11' has label {wrong}"):
            parquet(path)


@pytest.mark.parametrize("torn", [b"", b"no image at all", encoded(pixels(0), "JPEG")[:-40]])
def test_image_that_does_not_decode_is_named(tmp_path, torn):
    content = [encoded(pixels(i)) for i in range(12)]
    content[6] = torn
    images = parquet(write_parquet(tmp_path / "x.parquet", image=content))
    with pytest.raises(JobError, match=r"image 'img06' \(.*/x\.parquet, row 6\) does not decode"):
        images.load(4, 8)


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


def test_a_run_begun_before_is_another_job_only_where_its_pixels_were_others(tmp_path):
    """The digest of grey images, and of colour ones in RGB, is what version 0.1 made of them."""
    for kind, mode, same in (("L", "L", True), ("RGB", "RGB", True), ("RGB", "L", False)):
        path = tmp_path / f"{kind}-{mode}.parquet"
        encoded = io.BytesIO()
        Pillow.new(kind, (4, 4), 100).save(encoded, "PNG")
        pq.write_table(pa.table({"image": [encoded.getvalue()], "label": [0]}), path)
        transform = Transform(mode=mode)
        images = open_images(Images(source="parquet", path=str(path)), transform, KEY)
        before = digest([["0"], [0], images.content_digests(), transform.model_dump(mode="json")])
        assert (images.digest() == before) == same
