"""How many units go from each group, beside every choice there is."""

import itertools

import numpy as np
import pytest

from shapray.pruning.allocate import (
    LITTLE,
    WORTH,
    UnreachableError,
    by_score,
    evenly,
    in_order,
    least_loss,
    options,
    smallest,
)

GROUPS = ("a", "b", "c")


def problem(seed: int, product: bool):
    """Losses, choices and sizes of three small groups; with products of two, as where one layer
    lies between two groups."""
    rng = np.random.default_rng(seed)
    n_units = {group: int(rng.integers(2, 7)) for group in GROUPS}
    curves = {
        group: np.concatenate([[0], np.cumsum(rng.exponential(size=n) ** 2)])
        for group, n in n_units.items()
    }
    losses = {group: lambda n, curve=curve: float(curve[n]) for group, curve in curves.items()}
    w = rng.uniform(1, 5, size=4)

    def size(removed):
        a, b, c = (1 - removed.get(group, 0) / n for group, n in n_units.items())
        return 10 + w[0] * a + w[3] * c + (w[1] * a * b + w[2] * b * c if product else w[1] * b)

    choices = {group: options(n, 1, 1) for group, n in n_units.items()}
    least, whole = smallest(choices, size), size({})
    return losses, choices, size, least + (whole - least) * rng.uniform()


def total(losses, counts) -> float:
    return sum(losses[group](n) for group, n in counts.items())


def brute_force(losses, choices, size, target) -> float:
    every = (dict(zip(choices, counts)) for counts in itertools.product(*choices.values()))
    return min(total(losses, counts) for counts in every if size(counts) <= target)


def test_sizes_that_add_up_give_the_least_loss_there_is():
    for seed in range(50):
        losses, choices, size, target = problem(seed, product=False)
        found = least_loss(losses, choices, size, target)
        assert size(found) <= target
        least = brute_force(losses, choices, size, target)
        # more only to come nearer to the target
        assert total(losses, found) <= WORTH * least + LITTLE + 1e-9


def test_sizes_that_are_products_give_nearly_the_least_loss():
    ratios = []
    for seed in range(100):
        losses, choices, size, target = problem(seed, product=True)
        found = least_loss(losses, choices, size, target)
        assert size(found) <= target
        ratios.append(total(losses, found) / brute_force(losses, choices, size, target))
    assert np.mean(np.array(ratios) < WORTH + 1e-9) > 0.9
    assert max(ratios) < 1.5 * WORTH


def large(seed: int = 0):
    """Twelve layers in a row, each between two groups, with hundreds of units."""
    rng = np.random.default_rng(seed)
    n_units = {f"g{i}": int(n) for i, n in enumerate(rng.integers(20, 300, size=12))}
    steepness = {group: rng.uniform(0.1, 10) for group in n_units}
    losses = {
        group: lambda count, group=group, n=n: steepness[group] * (count / n) ** 2
        for group, n in n_units.items()
    }

    def size(removed):
        left = [3, *(n - removed.get(group, 0) for group, n in n_units.items())]
        return float(sum(a * b for a, b in itertools.pairwise(left)))

    return n_units, losses, size


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8, 0.99])
def test_the_size_is_met_from_below_and_nearly(share):
    n_units, losses, size = large()
    choices = {group: options(n, 1, 1) for group, n in n_units.items()}
    target = share * size({})
    shares = {group: np.linspace(0, 1, n) for group, n in n_units.items()}
    for found in (
        least_loss(losses, choices, size, target),
        in_order(by_score(shares), choices, size, target),
        in_order(evenly(n_units), choices, size, target),
    ):
        assert 0.99 * target < size(found) <= target
        assert all(found[group] in choices[group] for group in n_units)


def test_a_smaller_size_never_has_less_loss():
    n_units, losses, size = large(1)
    choices = {group: options(n, 4, 4) for group, n in n_units.items()}
    found = [
        total(losses, least_loss(losses, choices, size, share * size({})))
        for share in np.linspace(0.05, 1, 15)
    ]
    assert found == sorted(found, reverse=True)
    assert found[-1] == 0


def test_the_same_loss_per_size_everywhere_at_the_best():
    """Where losses are convex and sizes add up, no unit more or less would be a better bargain."""
    n_units = {"flat": 400, "steep": 400}
    losses = {"flat": lambda n: (n / 400) ** 2, "steep": lambda n: 4 * (n / 400) ** 2}
    choices = {group: options(n, 1, 1) for group, n in n_units.items()}
    found = least_loss(losses, choices, lambda removed: 800 - sum(removed.values()), 550)
    assert sum(found.values()) == 250
    assert total(losses, found) == pytest.approx(0.25 + 0.0625, rel=0.01)  # 200 and 50


def test_nothing_goes_where_all_may_stay():
    losses, choices, size, _ = problem(0, product=True)
    assert set(least_loss(losses, choices, size, size({})).values()) == {0}
    assert set(in_order(list("abc"), choices, size, size({})).values()) == {0}


def test_a_size_out_of_reach_names_the_nearest():
    losses, choices, size, _ = problem(0, product=True)
    least = smallest(choices, size)
    turns = [group for group, counts in choices.items() for _ in range(counts[-1] + 1)]
    for found in (
        least_loss(losses, choices, size, least),
        in_order(turns, choices, size, least),
    ):
        assert size(found) == least
    for call in (
        lambda: least_loss(losses, choices, size, least - 0.01),
        lambda: in_order(turns, choices, size, least - 0.01),
    ):
        with pytest.raises(UnreachableError) as caught:
            call()
        assert caught.value.nearest == least


@pytest.mark.parametrize(
    ("n_units", "min_units", "round_to", "expected"),
    [
        (5, 1, 1, [0, 1, 2, 3, 4]),
        (5, 3, 1, [0, 1, 2]),
        (5, 9, 1, [0]),
        (16, 1, 8, [0, 8]),
        (20, 1, 8, [0, 4, 12]),
        (20, 9, 8, [0, 4]),
        (6, 1, 8, [0, 1, 2, 3, 4, 5]),  # too small to be rounded
        (1, 1, 1, [0]),
    ],
)
def test_what_may_go(n_units, min_units, round_to, expected):
    assert options(n_units, min_units, round_to) == expected


def test_turns_are_a_prefix():
    choices = {"a": options(4, 1, 1), "b": options(8, 1, 4)}

    def size(removed):
        return 12 - sum(removed.values())

    turns = ["b", "a", "b", "b", "a", "b", "a", "b", "b", "b", "b", "a"]
    found = [in_order(turns, choices, size, target) for target in range(12, 4, -1)]
    assert found[:4] == [
        {"a": 0, "b": 0},
        {"a": 1, "b": 0},
        {"a": 2, "b": 0},
        {"a": 2, "b": 4},  # b's fourth turn is the first that makes a choice
    ]
    for before, after in itertools.pairwise(found):
        assert all(before[group] <= after[group] for group in choices)


def test_turns_by_score_and_turns_of_equal_shares():
    scores = {"a": np.array([0.5, -1.0, 3.0]), "b": np.array([9.0, 0.5])}
    assert by_score(scores) == ["a", "a", "b", "a", "b"]  # equal scores by the order of groups
    assert by_score({}) == []
    turns = evenly({"small": 4, "large": 100})
    for n_turns in range(104):
        taken = turns[:n_turns]
        shares = taken.count("small") / 4, taken.count("large") / 100
        assert abs(shares[0] - shares[1]) <= 1 / 4
