import numpy as np
import pytest

from shapray.config import Prune
from shapray.pruning.ranking import plan_removal, random_removal


def prune(**settings) -> Prune:
    return Prune(**settings)


SCORES = {
    "a": np.array([0.5, -1.0, 3.0, 0.1]),
    "b": np.array([9.0, 0.2, 8.0, 7.0, 0.0, 6.0]),
}


def test_lowest_scores_go_over_all_groups():
    plan = plan_removal(SCORES, prune(ratio=0.45, scope="global"))
    assert plan == {"a": [1, 3], "b": [1, 4]}  # floor(4.5): -1, 0, 0.1, 0.2


def test_lowest_scores_go_in_each_group():
    plan = plan_removal(SCORES, prune(ratio=0.5, scope="group"))
    assert plan == {"a": [1, 3], "b": [1, 4, 5]}


def test_share_is_that_of_the_decimal_number():
    scores = {"a": np.arange(100.0)}
    for percent in range(1, 100):
        plan = plan_removal(scores, prune(ratio=percent / 100, scope="group"))
        assert plan["a"] == list(range(percent))


def test_nothing_goes_at_ratio_zero_and_without_groups():
    assert plan_removal(SCORES, prune(ratio=0.0)) == {"a": [], "b": []}
    assert plan_removal({}, prune(ratio=0.5)) == {}


def test_equal_scores_go_by_order_of_groups_then_units():
    scores = {"z": np.zeros(3), "a": np.zeros(3)}
    assert plan_removal(scores, prune(ratio=0.67)) == {"z": [0, 1], "a": [0, 1]}
    assert plan_removal(scores, prune(ratio=0.34)) == {"z": [0, 1], "a": []}


def test_a_group_at_its_minimum_passes_the_budget_on():
    scores = {"weak": np.array([0.0, 1.0, 2.0]), "strong": np.arange(10.0, 17.0)}
    plan = plan_removal(scores, prune(ratio=0.5, min_units=2))
    assert plan == {"weak": [0], "strong": [0, 1, 2, 3]}
    plan = plan_removal(scores, prune(ratio=0.99, scope="group", min_units=4))
    assert plan == {"weak": [], "strong": [0, 1, 2]}


def test_rounding_leaves_a_multiple_and_removes_fewer():
    scores = {"a": np.arange(16.0), "odd": np.arange(20.0), "small": np.arange(3.0)}
    plan = plan_removal(scores, prune(ratio=0.7, scope="group", round_to=8))
    assert {group: len(units) for group, units in plan.items()} == {"a": 8, "odd": 12, "small": 2}
    plan = plan_removal(scores, prune(ratio=0.1, scope="group", round_to=8))
    assert {group: len(units) for group, units in plan.items()} == {"a": 0, "odd": 0, "small": 0}
    plan = plan_removal(scores, prune(ratio=0.3, scope="group", round_to=8))
    assert plan["odd"] == [0, 1, 2, 3]


def test_what_was_not_measured_cannot_be_ranked():
    with pytest.raises(ValueError, match=r"group 'b': 1 of 3 scores .* unit 1 \(nan\)"):
        plan_removal({"a": np.ones(2), "b": np.array([1.0, np.nan, 0.0])}, prune())


@pytest.mark.parametrize("scope", ["global", "group"])
@pytest.mark.parametrize("round_to", [1, 4, 8])
@pytest.mark.parametrize("min_units", [1, 5])
def test_plans_and_baselines_keep_the_constraints(scope, round_to, min_units):
    rng = np.random.default_rng(0)
    for seed in range(30):
        sizes = rng.integers(1, 40, size=rng.integers(1, 8))
        scores = {f"g{i}": rng.normal(size=n) for i, n in enumerate(sizes)}
        n_units = {group: len(values) for group, values in scores.items()}
        settings = prune(
            ratio=float(rng.uniform(0, 0.99)), scope=scope, round_to=round_to, min_units=min_units
        )
        plan = plan_removal(scores, settings)
        baseline = random_removal(n_units, plan, settings, seed)
        assert random_removal(n_units, plan, settings, seed) == baseline
        for removed in (plan, baseline):
            assert list(removed) == list(scores)
            for group, units in removed.items():
                left = n_units[group] - len(units)
                assert units == sorted(set(units))
                assert all(0 <= unit < n_units[group] for unit in units)
                if units:
                    assert left >= min_units
                    assert n_units[group] < round_to or left % round_to == 0

        for group, units in plan.items():  # no unit that stays is worth less than one that goes
            stay = np.delete(scores[group], units)
            assert not units or scores[group][units].max() <= stay.min()
        planned = sum(map(len, plan.values()))
        drawn = sum(map(len, baseline.values()))
        if scope == "group":
            assert [len(units) for units in baseline.values()] == [len(u) for u in plan.values()]
        elif round_to == 1:
            assert drawn == planned
        else:
            assert planned - round_to < drawn <= planned


def test_global_baseline_is_uniform_over_all_units():
    n_units = {"small": 8, "big": 24}
    plan = {"small": [0, 1, 2, 3, 4, 5, 6, 7][:2], "big": list(range(6))}
    times = {"small": np.zeros(8), "big": np.zeros(24)}
    n_draws = 2000
    for seed in range(n_draws):
        for group, units in random_removal(n_units, plan, prune(), seed).items():
            times[group][units] += 1
    share = np.concatenate(list(times.values())) / n_draws  # 8 of 32 units: a quarter each
    assert np.abs(share - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / n_draws)


def test_baseline_of_even_groups_has_the_total_in_blocks():
    n_units = {"a": 16, "b": 32, "c": 64}
    plan = {"a": list(range(8)), "b": list(range(16)), "c": list(range(16))}
    seen = set()
    for seed in range(20):
        counts = [len(u) for u in random_removal(n_units, plan, prune(round_to=8), seed).values()]
        assert sum(counts) == 40
        seen.add(tuple(counts))
    assert len(seen) > 3
