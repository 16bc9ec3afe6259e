"""Images in folders: classes, endings, links."""

import pytest
import torch
from pictures import KEY, encoded, folder, make_folder, pixels, scaled

from shapray.config import Images, Transform
from shapray.errors import JobError
from shapray.inputs.decode import FORMATS
from shapray.inputs.images import open_images


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


# -- links


def test_class_folders_may_be_links(tmp_path):
    make_folder(tmp_path / "elsewhere")
    (tmp_path / "set").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "elsewhere" / name)
    linked, plain = folder(tmp_path / "set"), folder(tmp_path / "elsewhere")
    assert linked.ids == plain.ids
    assert linked.digest() == plain.digest()


def test_links_below_a_class_are_followed_but_not_in_circles(tmp_path):
    root = make_folder(tmp_path / "set", n=2)
    make_folder(tmp_path / "more", n=1)
    (root / "cat" / "more").symlink_to(tmp_path / "more" / "dog")
    (root / "cat" / "one.png").symlink_to(tmp_path / "more" / "cat" / "0.png")
    (root / "dog" / "again").symlink_to(root / "dog")
    (root / "dog" / "cats").symlink_to(root / "cat")
    (root / "cat" / "dogs").symlink_to(root / "dog")
    images = folder(root)
    own = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(2)]
    assert {*own, "cat/more/0.png", "cat/one.png", "dog/cats/0.png"} <= set(images.ids)
    assert len(images) == 12
    assert torch.equal(images.load(images.ids.index("cat/more/0.png"), len(images))[0], scaled(10))
