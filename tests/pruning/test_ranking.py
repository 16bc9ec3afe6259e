"""Scores to an order, and the order and the constraints to what goes."""

import numpy as np
import pyarrow as pa
import pytest
from cases import case

from shapray.config import Prune
from shapray.network.find import find_groups
from shapray.pruning.allocate import UnreachableError, by_score
from shapray.pruning.chooser import Chooser
from shapray.pruning.ranking import Ranking, needed_criteria, rankings
from shapray.pruning.repair.curves import counts
from shapray.pruning.sizes import Sizes

SCORES = {
    "a": np.array([0.5, -1.0, 3.0, 0.1]),
    "b": np.array([9.0, 0.2, 8.0, 7.0, 0.0, 6.0]),
}


def ranking(scores) -> Ranking:
    return Ranking("shapley", None, scores)


def chosen(scores, **settings) -> dict[str, list[int]]:
    """What goes at a share of the units."""
    prune = Prune(**{"allocation": "global"} | settings)
    chooser = Chooser(prune, {group: len(values) for group, values in scores.items()}, None)
    return chooser.choose(ranking(scores), {}, "ratio", prune.target[1])


def table(scores, **columns) -> pa.Table:
    groups = [group for group, values in scores.items() for _ in values]
    mean = np.concatenate(list(scores.values()))
    return pa.table({"group": groups, "mean": mean, "mean_abs": np.abs(mean)} | columns)


# ---- scores to rankings ----------------------------------------------------------------------


def test_the_jobs_own_ranking_is_by_its_column():
    found = rankings(table(SCORES), Prune(criteria=[]), {})
    assert [(one.name, one.seed) for one in found] == [("shapley", None)]
    assert found[0].orders == {"a": [3, 0, 1, 2], "b": [4, 1, 5, 3, 2, 0]}
    [by_mean] = rankings(table(SCORES), Prune(rank_by="mean", criteria=[]), {})
    assert by_mean.orders["a"] == [1, 3, 0, 2]


def test_a_score_and_a_part_of_its_spread():
    std = np.arange(10.0)
    [found] = rankings(table(SCORES, std=std), Prune(rank_by="mean + 0.5*std", criteria=[]), {})
    assert found.criterion == "shapley"
    assert found.scores["a"] == pytest.approx(SCORES["a"] + 0.5 * std[:4])
    assert found.scores["b"] == pytest.approx(SCORES["b"] + 0.5 * std[4:])


def test_others_are_compared_and_the_random_ones_by_every_seed():
    taylor = np.arange(10.0)[::-1]
    asked = Prune(rank_by="taylor", criteria=["mean", "random", "taylor"], random_seeds=[4, 7])
    found = rankings(table(SCORES, taylor=taylor), asked, {})
    assert [one.name for one in found] == ["taylor", "mean", "random-4", "random-7"]
    assert found[0].orders["a"] == [3, 2, 1, 0]
    assert found[2].orders != found[3].orders
    assert needed_criteria(asked) == ["taylor"]


def test_random_orders_are_uniform_and_of_a_group_alone():
    times = np.zeros(8)
    seeds = range(1500)
    prune = Prune(criteria="random", random_seeds=seeds)
    _, *drawn = rankings(table({"a": np.zeros(8)}), prune, {})
    for one in drawn:
        times[one.orders["a"][:2]] += 1
    assert np.abs(times / len(seeds) - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / len(seeds))
    both = table({"a": np.zeros(8), "b": np.zeros(5)})
    _, *again = rankings(both, prune, {})
    assert [one.orders["a"] for one in again] == [one.orders["a"] for one in drawn]


def test_ranks_by_several_criteria_are_added_up():
    scores = {"a": np.array([1.0, 2.0, 3.0, 4.0])}
    columns = table(scores, l1_norm=[9.0, 0.0, 1.0, 10.0])
    [found] = rankings(columns, Prune(rank_by=["mean", "l1_norm"], criteria=[]), {})
    assert found.criterion == "mean & l1_norm"
    assert found.orders["a"] == [1, 0, 2, 3]  # places 0 1 2 3 and 2 0 1 3


def test_worth_per_multiply_add():
    asked = Prune(per_multiply_add=True, criteria=[], rank_by="mean")
    [found] = rankings(table(SCORES), asked, {"a": 2.0, "b": 4.0})
    assert found.scores["a"] == pytest.approx([0.25, -2.0, 1.5, 0.05])
    assert found.scores["b"] == pytest.approx(SCORES["b"] / 4)


def test_of_units_that_do_harm_the_dearest_go_first():
    scores = {"cheap": np.array([-1.0, 1.0]), "dear": np.array([-1.0, 1.0])}
    asked = Prune(per_multiply_add=True, criteria=[], rank_by="mean")
    [found] = rankings(table(scores), asked, {"cheap": 10.0, "dear": 1000.0})
    assert by_score(found.scores) == ["dear", "cheap", "dear", "cheap"]


def test_what_was_not_measured_cannot_be_ranked():
    scores = {"a": np.ones(2), "b": np.array([1.0, np.nan, 0.0])}
    with pytest.raises(ValueError, match=r"group 'b': 1 of 3 scores by mean_abs .* unit 1 \(nan\)"):
        rankings(table(scores), Prune(), {})


# ---- rankings to what goes -------------------------------------------------------------------


def test_lowest_scores_go_over_all_groups():
    assert chosen(SCORES, ratio=0.45) == {"a": [1, 3], "b": [1, 4]}  # floor(4.5): -1, 0, 0.1, 0.2


def test_lowest_scores_go_in_each_group():
    assert chosen(SCORES, ratio=0.5, allocation="uniform") == {"a": [1, 3], "b": [1, 4, 5]}


def test_share_is_that_of_the_decimal_number():
    for percent in range(1, 100):
        for allocation in ("global", "uniform"):
            plan = chosen({"a": np.arange(100.0)}, ratio=percent / 100, allocation=allocation)
            assert plan["a"] == list(range(percent))


def test_nothing_goes_at_ratio_zero_and_without_groups():
    assert chosen(SCORES, ratio=0.0) == {"a": [], "b": []}
    assert chosen({}, ratio=0.5) == {}


def test_equal_scores_go_by_order_of_groups_then_units():
    scores = {"z": np.zeros(3), "a": np.zeros(3)}
    assert chosen(scores, ratio=0.34) == {"z": [0, 1], "a": []}
    assert chosen(scores, ratio=0.67) == {"z": [0, 1], "a": [0, 1]}


def test_a_group_at_its_minimum_passes_the_budget_on():
    scores = {"weak": np.array([0.0, 1.0, 2.0]), "strong": np.arange(10.0, 17.0)}
    assert chosen(scores, ratio=0.5, min_units=2) == {"weak": [0], "strong": [0, 1, 2, 3]}


def test_protected_groups_lose_nothing():
    assert chosen(SCORES, ratio=0.3, protect=["a*"]) == {"a": [], "b": [1, 4, 5]}


def test_the_measured_losses_say_where_units_go():
    losses = {
        "shapley": {
            "a": [0.0, *[5.0] * (len(counts(4)) - 1)],
            "b": np.linspace(0, 1, len(counts(6))),
        }
    }
    chooser = Chooser(Prune(ratio=0.3), {"a": 4, "b": 6}, None)
    assert chooser.choose(ranking(SCORES), losses, "ratio", 0.3) == {"a": [], "b": [1, 4, 5]}


@pytest.mark.parametrize("allocation", ["measured", "global", "uniform"])
@pytest.mark.parametrize("round_to", [1, 4, 8])
@pytest.mark.parametrize("min_units", [1, 5])
def test_plans_keep_the_constraints_and_the_share(allocation, round_to, min_units):
    rng = np.random.default_rng(0)
    for _ in range(20):
        sizes = rng.integers(1, 40, size=rng.integers(1, 8))
        scores = {f"g{i}": rng.normal(size=n) for i, n in enumerate(sizes)}
        share = float(rng.uniform(0, 0.99))
        prune = Prune(ratio=share, allocation=allocation, round_to=round_to, min_units=min_units)
        check(prune, scores, None, rng)


@pytest.mark.parametrize("allocation", ["measured", "global", "uniform"])
@pytest.mark.parametrize("key", ["macs", "parameters"])
@pytest.mark.parametrize(("round_to", "min_units"), [(1, 1), (2, 3)])
@pytest.mark.parametrize("name", ["digits", "Separable", "SqueezeExcite", "Aggregated"])
def test_plans_keep_the_constraints_and_the_size(name, key, allocation, round_to, min_units):
    model, example = case(name).model, case(name).example
    sizes = Sizes(model, find_groups(model, example), example)
    rng = np.random.default_rng(0)
    for share in (0.2, 0.4, 0.6, 0.8, 0.95):
        scores = {group.name: rng.normal(size=group.n_units) for group in case(name).groups}
        settings = {"round_to": round_to, "min_units": min_units, key: share}
        check(Prune(allocation=allocation, **settings), scores, sizes, rng)


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_a_rivals_size_is_the_nearest_from_below_or_a_little_above(allocation):
    model, example = case("digits").model, case("digits").example
    sizes = Sizes(model, find_groups(model, example), example)
    n_units = {group.name: group.n_units for group in case("digits").groups}
    chooser = Chooser(Prune(allocation=allocation, macs=0.5), n_units, sizes)
    rng = np.random.default_rng(0)
    found = []
    for share in rng.uniform(0.2, 0.9, size=40):
        other = ranking({group: rng.normal(size=n) for group, n in n_units.items()})
        macs = share * sizes.all_macs
        less, own = (
            sizes.macs({group: len(units) for group, units in removed.items()}) / macs
            for removed in (
                chooser.choose(other, {}, "macs", share),
                chooser.as_large(other, {}, macs),
            )
        )
        assert less <= 1
        assert abs(1 - own) <= 1 - less
        assert own <= 1.005
        found.append((less, own))
    assert any(less < 0.995 and own > 1 for less, own in found)
    assert all(own == less for less, own in found if less >= 0.995)


def check(prune: Prune, scores, sizes, rng) -> None:
    """What a plan has to keep, and that a size is refused beforehand if none can be made."""
    n_units = {group: len(values) for group, values in scores.items()}
    chooser = Chooser(prune, n_units, sizes)
    losses = {
        "shapley": {
            group: np.append(0.0, rng.exponential(size=len(chooser.points(group)) - 1).cumsum())
            for group in n_units
        }
    }
    blocks = {group: chooser.blocks.get(group) or [0] * n for group, n in n_units.items()}
    key, share = prune.target
    try:
        chooser.check()
    except ValueError:
        with pytest.raises(UnreachableError):
            chooser.choose(ranking(scores), losses, key, share)
        return
    plan = chooser.choose(ranking(scores), losses, key, share)
    assert list(plan) == list(scores)
    for group, units in plan.items():
        left = n_units[group] - len(units)
        assert units == sorted(set(units))
        assert all(0 <= unit < n_units[group] for unit in units)
        if units:
            assert left >= prune.min_units
            assert n_units[group] < prune.round_to or left % prune.round_to == 0
            # no unit that stays is worth less than one that goes
            gone, of_blocks = np.isin(np.arange(n_units[group]), units), np.array(blocks[group])
            for block in set(blocks[group]):
                own, goes = scores[group][of_blocks == block], gone[of_blocks == block]
                assert goes.sum() == len(units) / len(set(blocks[group]))
                assert own[goes].max() <= own[~goes].min()
    size, whole = chooser.measure(key)
    found = size({group: len(units) for group, units in plan.items()})
    if key == "ratio":
        asked = whole - np.floor(share * whole + 1e-9)
        assert found <= asked
        assert found == asked or prune.round_to > 1
    else:
        assert found <= share * whole * (1 + 1e-9)


def test_a_jobs_own_ranking_is_one_and_rivals_that_cannot_be_had_are_left_out():
    columns = table({"a": np.array([1.0, 2.0])})
    prune = Prune(rank_by="random", criteria=["mean", "l1_norm"], random_seeds=[7, 8])
    assert [ranking.name for ranking in rankings(columns, prune, {})] == ["random-7", "mean"]


# --- auto -----------------------------------------------------------------------------------------


def test_auto_is_by_what_the_repair_leaves_to_be_missed():
    scores = {"a": [0.1, 0.3, 0.2], "b": [0.5, 0.4]}
    columns = table(scores, obs=[3.0, 1.0, 2.0, 1.0, 2.0])
    [with_repair] = rankings(columns, Prune(criteria=[]), {})
    assert with_repair.name == "shapley"
    named = Prune(criteria=[], rank_by=["obs", "mean_abs"])
    assert with_repair.orders == rankings(columns, named, {})[0].orders
    for settings in ({"repair": []}, {"repair": ["batchnorm"]}, {"allocation": "global"}):
        [alone] = rankings(columns, Prune(criteria=[], **settings), {})
        assert alone.orders == {"a": [0, 2, 1], "b": [1, 0]}
        assert needed_criteria(Prune(criteria=[], **settings)) == []
    assert needed_criteria(Prune(criteria=[])) == ["obs"]


def test_auto_makes_do_without_what_a_network_does_not_allow():
    [found] = rankings(table({"a": [0.1, 0.3, 0.2]}), Prune(criteria=["mean_abs"]), {})
    assert found.orders == {"a": [0, 2, 1]}  # and it is not its own rival
