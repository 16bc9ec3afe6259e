"""A cut in several rounds: sizes on the way, and a cut network's units said of the whole's."""

import numpy as np
import pytest

from shapray.config import Prune
from shapray.network.index_maps import units_left
from shapray.pruning.chooser import Chooser
from shapray.pruning.ranking import Ranking
from shapray.pruning.repair.curves import counts
from shapray.pruning.rounds import (
    Decision,
    check_rounds,
    of_the_whole,
    repairs_between,
    sizes_on_the_way,
)

N_UNITS = {"a": 12, "b": 20, "c": 7}


@pytest.mark.parametrize(
    ("target", "sizes"),
    [
        ({"macs": 0.25}, [0.25**0.5, 0.25]),
        ({"parameters": 0.125}, [0.5, 0.25, 0.125]),
        ({"ratio": 0.75}, [0.5, 0.75]),
        ({"macs": 0.3}, [0.3]),
    ],
)
def test_every_round_leaves_the_same_share_of_what_was_left(target, sizes):
    prune = Prune(**target, rounds=len(sizes))
    assert sizes_on_the_way(prune) == pytest.approx(sizes)
    assert sizes_on_the_way(prune)[-1] == sizes[-1]  # the last is the job's own, to the bit


def test_nothing_is_trained_between_rounds():
    prune = Prune(repair=["batchnorm", "least_squares", "distill"])
    assert repairs_between(prune) == ("batchnorm", "least_squares")


def test_units_of_a_cut_network_by_their_numbers_in_the_whole():
    assert units_left(6, [4, 0]) == [1, 2, 3, 5]
    own = Ranking("shapley", None, {"a": np.array([3.0, 1.0]), "c": np.array([0.5, 0.4, 0.6])})
    found = of_the_whole(own, {"a": 4, "b": 3, "c": 3}, {"a": [1, 2], "b": [2], "c": []})
    assert found.name == "shapley"
    # what is gone first, by number; then the worst of what was left: unit 1 there is 3 here
    assert found.orders == {"a": [1, 2, 3, 0], "b": [2, 0, 1], "c": [1, 0, 2]}


@pytest.mark.parametrize("allocation", ["measured", "global", "uniform"])
@pytest.mark.parametrize(("round_to", "min_units"), [(1, 1), (1, 6), (4, 1)])
def test_a_further_round_goes_on_where_the_one_before_stopped(allocation, round_to, min_units):
    rng = np.random.default_rng(0)
    settings = {"allocation": allocation, "round_to": round_to, "min_units": min_units}
    prune = Prune(ratio=0.4, rounds=2, **settings)
    first = Chooser(prune, N_UNITS, None)
    between, last = sizes_on_the_way(prune)
    for _ in range(20):
        own, losses = drawn(N_UNITS, rng)
        removed = Decision(1, first, own, losses).cut(between)
        n_left = {group: n - len(removed[group]) for group, n in N_UNITS.items()}
        own, losses = drawn({group: n for group, n in n_left.items() if group != "c"}, rng)
        chooser = first.after(removed, ["a", "b"])
        own = of_the_whole(own, N_UNITS, removed)
        final = Decision(2, chooser, own, losses).cut(last)

        assert final["c"] == removed["c"]  # it could not be scored any more
        for group, units in final.items():
            assert set(removed[group]) <= set(units)
            left = N_UNITS[group] - len(units)
            assert not units or (left >= min_units)
            assert not units or left % round_to == 0 or N_UNITS[group] < round_to
            more = [unit for unit in units if unit not in removed[group]]
            stay = [unit for unit in range(N_UNITS[group]) if unit not in units]
            assert not more or own.scores[group][more].max() <= own.scores[group][stay].min()
        n_gone = sum(map(len, final.values()))
        assert n_gone >= int(0.4 * 39)
        assert n_gone == int(0.4 * 39) or round_to > 1


def drawn(n_units, rng) -> tuple[Ranking, dict]:
    """Scores and losses as of a network with so many units."""
    scores = {group: rng.normal(size=n) for group, n in n_units.items()}
    losses = {
        group: np.concatenate([[0], np.cumsum(rng.exponential(size=len(counts(n)) - 1))])
        for group, n in n_units.items()
    }
    return Ranking("shapley", None, scores), {"shapley": losses}


def test_the_losses_of_a_further_round_are_of_what_more_goes():
    prune = Prune(ratio=0.5, rounds=2)
    removed = {"a": [0, 1, 2, 3], "b": [], "c": []}
    chooser = Chooser(prune, N_UNITS, None).after(removed, N_UNITS)
    own = of_the_whole(
        drawn({"a": 8, "b": 20, "c": 7}, np.random.default_rng(1))[0], N_UNITS, removed
    )
    cheap = {"a": np.linspace(0, 0.01, len(counts(8)))}
    dear = {group: np.linspace(0, 9, len(counts(N_UNITS[group]))) for group in ("b", "c")}
    cut = Decision(2, chooser, own, {"shapley": cheap | dear}).cut(0.25)
    assert [len(units) for units in cut.values()] == [9, 0, 0]


def test_more_rounds_than_units_can_go():
    prune = Prune(macs=0.5, rounds=37, protect=["b"])
    chooser = Chooser(prune, N_UNITS, None)
    with pytest.raises(
        ValueError, match=r"^rounds: 37; .* the 39 units in the 3 groups to score 17"
    ):
        check_rounds(prune, chooser)
    check_rounds(prune.model_copy(update={"rounds": 17}), chooser)


def test_a_size_that_what_is_left_cannot_meet():
    prune = Prune(ratio=0.6, rounds=2)
    removed = {"a": [0], "b": [], "c": []}
    chooser = Chooser(prune, N_UNITS, None).after(removed, ["a"])
    own = of_the_whole(Ranking("shapley", None, {"a": np.arange(11.0)}), N_UNITS, removed)
    losses = {"shapley": {"a": [0.0] * len(counts(11))}}
    with pytest.raises(ValueError, match=r"^rounds: 2; ratio: 0\.6 cannot be met .* in round 2"):
        Decision(2, chooser, own, losses).cut(0.6)
