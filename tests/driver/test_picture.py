"""The picture of a cut, for terminals and for files."""

import io

import numpy as np
import pytest
from tiny import SCORED, write_job

from shapray.driver.console import PlainConsole
from shapray.driver.picture import BLOCKS, Share, joined, show
from shapray.run import main
from shapray.storage.run_directory import RunDirectory


def shown(shares, encoding="utf-8", **options):
    written = io.BytesIO()
    file = io.TextIOWrapper(written, encoding)
    show(PlainConsole(file, **{"width": 80, "height": 24, "color_system": None} | options), shares)
    file.flush()
    return written.getvalue().decode(encoding)


def bar(text, name):
    lines = (line.replace("|", " ").split() for line in text.splitlines())  # a frame in ASCII
    ((_, found, *_),) = (words for words in lines if words[:1] == [name])
    return found


def test_units_are_kept_removed_or_unsure():
    chances = np.array([0.0, 0.3, 0.04, 0.2, 0.03, 0.05])
    share = Share.of("conv1", [0, 1], chances)
    assert (share.kept, share.removed) == (4, 2)
    assert (share.unsure_kept, share.unsure_removed) == (2, 1)
    assert share.counts == (2, 3, 1)


def test_what_is_not_known_is_said_and_drawn_as_the_cut_has_it():
    share = Share.of("conv1", [0], np.array([np.nan] * 4))
    assert share.unsure is None
    assert share.counts == (3, 0, 1)
    text = shown([share])
    assert "not known" in text
    assert "?" not in bar(text, "conv1")


def test_a_bar_has_the_units_shares_and_every_kind_that_is_there():
    text = shown([Share("a", 75, 25, 0, 0), Share("b", 511, 1, 0, 1), Share("c", 8, 0, 0, 0)])
    first, second, third = (bar(text, name) for name in "abc")
    assert len(first) == len(second) == len(third)
    assert first.count("#") == pytest.approx(0.75 * len(first), abs=1)
    assert first == "#" * first.count("#") + "." * first.count(".")
    assert second.count("?") == 1  # the one that goes is unsure
    assert set(third) == {"#"}


def test_a_terminal_gets_blocks_and_everything_else_plain_letters():
    share = [Share("conv1", 6, 2, 1, 1)]
    assert BLOCKS[1] in shown(share, force_terminal=True)
    for text in (
        shown(share),
        shown(share, "ascii"),
        shown(share, "ascii", force_terminal=True),
        shown(share, "latin-1", force_terminal=True),
    ):
        assert not set(BLOCKS) & set(text)
        assert "#" in bar(text, "conv1")
        assert "?" in bar(text, "conv1")


def test_many_groups_take_no_more_lines_than_the_terminal_has():
    groups = [Share(f"layer{i}", 10, i % 5, 1, i % 5 // 4) for i in range(54)]
    for height in (24, 50):
        text = shown(groups, force_terminal=True, height=height)
        assert len(text.splitlines()) <= height
    assert "layer0 and" in shown(groups, force_terminal=True)
    together = joined(groups, 16)
    assert len(together) <= 16
    assert sum(share.kept for share in together) == 540
    assert sum(share.unsure for share in together) == sum(share.unsure for share in groups)
    assert joined(groups, 54) == groups


@pytest.mark.parametrize("width", [30, 80, 200])
def test_odd_names_neither_break_the_lines_nor_reach_the_terminal(width):
    text = shown([Share("\x1b[2J[red]" + "x" * 90, 3, 1, 0, 0)], width=width)
    assert "\x1b" not in text
    assert "[red]" in text.replace("\n", "").replace(" ", "")
    assert all(len(line) <= width for line in text.splitlines()[:8])


def test_the_end_of_a_run_shows_every_group(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(RunDirectory, "shared", False)
    job = write_job(tmp_path, data__calibration__limit=8)
    assert main([str(job), *SCORED, "prune.ratio=0.4"]) == 0
    said = capsys.readouterr().out
    for name in ("conv1", "conv2", "conv3", "fc1"):
        assert set(bar(said, name)) <= set("#?.")
    assert "# kept  ? unsure  . removed" in said
