"""A group's game played again on a real network: tables, bounds, the same numbers every time."""

import dataclasses
from functools import cache

import brute_force
import numpy as np
import pytest
import torch
from cases import Case, case
from torch import nn

from shapray.engine.network_game import NetworkSplit
from shapray.engine.trace import fold
from shapray.explain import games
from shapray.explain.games import MIN_IMAGES, Asked, Played, play_again
from shapray.network.find import find_groups
from shapray.storage.explained import TABLES

GROUP = "features.0"


@pytest.fixture(autouse=True)
def _few_images_are_sampled(monkeypatch):
    """Over and over: that takes the longest."""
    monkeypatch.setattr(games, "MOST_ENUMERATED", 4)


@cache
def network() -> Case:
    return case("Vgg")


@cache
def images(n: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(1)
    scale = torch.rand(n, 1, 1, 1, generator=generator) * 2
    return (
        torch.randn(n, 3, 8, 8, generator=generator) * scale,
        torch.randint(5, (n,), generator=generator),
        [f"image {i}" for i in range(n)],
    )


def prepared() -> NetworkSplit:
    return network().split(network().group(GROUP))


def played(n: int = 30, n_evaluations: int = 10**6, **changes) -> Played:
    split = prepared()
    n_units = split.group.n_units
    asked = Asked(
        value="neg_cross_entropy",
        seed=0,
        order=list(range(n_units)),
        n_cut=n_units // 2,
        rank_by="mean_abs",
        exact_max_players=12,
        n_evaluations=n_evaluations,
    )
    values = np.zeros((n, n_units))
    return play_again(split, *images(n), values, dataclasses.replace(asked, **changes))


def exact_games(n: int) -> list[np.ndarray]:
    """Values of all coalitions of all units, for each image."""
    pixels, labels, _ = images(n)
    split = prepared()
    game = split.game(pixels, labels, "neg_cross_entropy")
    units = torch.arange(split.group.n_units)
    return [game.subset_values(i, units).numpy() for i in range(n)]


def test_tables_have_their_columns_and_say_what_brute_force_says():
    n = 12
    found = played(n)
    for name, table in found.tables.items():
        assert table.schema.equals(TABLES[name], check_metadata=True)
        assert table.num_rows > 0
        assert set(table["group"].to_pylist()) == {GROUP}
    values = exact_games(n)

    of_pairs = np.mean([brute_force.interactions(of_image) for of_image in values], axis=0)
    for row in found.tables["interactions"].to_pylist():
        assert row["interaction"] == pytest.approx(of_pairs[row["unit"], row["other"]], abs=1e-5)
        assert (row["n_images"], row["n_exact"], row["standard_error"]) == (n, n, 0.0)

    everybody = len(values[0]) - 1
    units = 2 ** np.arange(everybody.bit_length())
    (row,) = found.tables["additivity"].to_pylist()
    alone = [(of[units] - of[0]).sum() for of in values]
    last = [(of[everybody] - of[everybody - units]).sum() for of in values]
    assert row["alone"] == pytest.approx(np.mean(alone), abs=1e-4)
    assert row["last"] == pytest.approx(np.mean(last), abs=1e-4)
    assert row["alone_error"] == pytest.approx(np.std(alone, ddof=1) / n**0.5, abs=1e-4)
    assert row["value_none"] == pytest.approx(np.mean([of[0] for of in values]), abs=1e-5)

    assert found.tables["flips"]["n_cut"].to_pylist() == [3] * 4
    assert set(found.tables["sampling"]["image_id"].to_pylist()) <= set(images(n)[2])


def test_drawn_interactions_are_near_the_exact_ones():
    digits = case("digits")
    split = digits.split(digits.group("conv3"))
    n, n_units = len(digits.images), split.group.n_units
    exact, drawn = (
        play_again(
            split,
            digits.images,
            digits.labels,
            [str(i) for i in range(n)],
            np.zeros((n, n_units)),
            Asked("neg_cross_entropy", 0, list(range(n_units)), 0, "mean", limit, 10**7),
        )
        .tables["interactions"]
        .to_pandas()
        for limit in (16, 0)
    )
    assert (exact.n_exact == n).all()
    assert (drawn.n_exact == 0).all()
    assert (drawn.total_error > 0).all()
    off = np.abs(drawn.interaction - exact.interaction)
    assert (off < 4 * drawn.standard_error).all()
    assert off.mean() < 0.5 * np.abs(exact.interaction).mean()


def test_the_same_arguments_give_the_same_tables_and_another_seed_others():
    first, again, other = played(), played(), played(seed=1)
    assert first == again
    assert first.tables["sizes"] != other.tables["sizes"]
    assert first.tables["sampling"] != other.tables["sampling"]


def test_games_of_few_images_at_once_give_the_same(monkeypatch):
    whole = played(20)
    monkeypatch.setattr(NetworkSplit, "images_at_once", lambda self, n_permutations: 3)
    parts = played(20)
    assert whole.n_evaluations == parts.n_evaluations
    for name, table in whole.tables.items():
        for column in table.column_names:
            ours, theirs = table[column].to_pylist(), parts.tables[name][column].to_pylist()
            if isinstance(ours[0], float):
                ours, theirs = np.array(ours, float), np.array(theirs, float)
                np.testing.assert_allclose(ours, theirs, atol=1e-4)
            else:
                assert ours == theirs


def test_what_is_taken_is_a_quarter_and_the_least_useful_in_any_case():
    n = 80
    for n_evaluations in (8_000, 80_000):
        found = played(n, n_evaluations, exact_max_players=0)
        assert sum(found.n_evaluations.values()) <= n_evaluations / 4
    least = played(n, n_evaluations=0)
    (row,) = least.tables["additivity"].to_pylist()
    assert row["n_images"] == MIN_IMAGES
    assert set(least.tables["interactions"]["n_images"].to_pylist()) == {MIN_IMAGES}
    assert least.tables["sampling"].num_rows == least.tables["flips"].num_rows == 0
    assert least.n_evaluations["sampling"] == 0


def test_images_with_units_of_all_numbers_are_enumerated(monkeypatch):
    """Of every number of active units one, before there are two of any."""
    monkeypatch.setattr(games, "MOST_ENUMERATED", 3)
    found = played(30).tables["sampling"].to_pandas()
    numbers = found.groupby("image_id").n_active.first()
    pixels, labels, _ = images(30)
    there = prepared().game(pixels, labels, "neg_cross_entropy").active.sum(1)
    assert sorted(numbers) == sorted({k for k in there.tolist() if k})[:3]


def test_units_that_are_never_active_have_no_pairs():
    found = played().tables["interactions"]
    pixels, labels, _ = images(30)
    active = prepared().game(pixels, labels, "neg_cross_entropy").active.any(0)
    assert not active.all()
    units = {*found["unit"].to_pylist(), *found["other"].to_pylist()}
    assert units <= set(active.nonzero()[:, 0].tolist())


def test_pairs_of_a_wide_group_are_drawn():
    n, n_units = 9, 70  # more than a machine's integer has bits
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(3, n_units, 1), nn.Flatten(), nn.Linear(n_units * 4, 5)).eval()
    pixels, example = torch.randn(n, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    [group, _] = find_groups(wide, example)
    split = NetworkSplit(fold(wide, example), group, example)
    asked = Asked("neg_kl_divergence", 0, list(range(n_units)), 35, "mean", 12, 10**5)
    ids = [str(image) for image in range(n)]
    found = play_again(split, pixels, None, ids, np.zeros((n, n_units)), asked)
    assert 0 < found.n_evaluations["interactions"] < 10**5


def test_images_without_labels():
    n = 10
    pixels, _, ids = images(n)
    split = prepared()
    asked = Asked("neg_kl_divergence", 0, list(range(6)), 3, "mean", 12, 10**5)
    found = play_again(split, pixels, None, ids, np.zeros((n, 6)), asked)
    assert found.tables["additivity"]["value_all"].to_pylist() == [pytest.approx(0, abs=1e-6)]


def test_a_value_that_is_no_number_names_group_and_image():
    n = 10
    pixels, labels, ids = images(n)
    pixels = pixels.clone()
    pixels[4] = torch.nan
    asked = Asked("neg_cross_entropy", 0, list(range(6)), 3, "mean", 12, 10**5)
    with pytest.raises(ValueError, match=r"group features\.0, image image 4: the value is nan"):
        play_again(prepared(), pixels, labels, ids, np.zeros((n, 6)), asked)
