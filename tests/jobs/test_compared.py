"""Differences between networks with intervals over draws and images; what the tables make of it."""

import numpy as np
import pytest

from jobs.benchmarks.compared import DEFAULT, OWN, REPAIRED, compression, curves, difference, packed
from jobs.benchmarks.results import merge, read

N_IMAGES = 500


def rows_of(criterion, draws, *, repair=OWN, network="resnet20", share=0.5, top1=0.8):
    random = np.random.default_rng(len(criterion))
    for draw in draws:
        hits, losses = random.random(N_IMAGES) < top1, random.exponential(1 - top1, N_IMAGES)
        yield {
            "network": network,
            "draw": draw,
            "criterion": criterion,
            "share": share,
            "allocation": OWN,
            "repair": repair,
            "multiply_adds": 1000,
            "top1": hits.mean(),
            "loss": losses.mean(),
            **packed(hits, losses),
        }


def test_an_interval_has_the_width_of_both_spreads():
    random = np.random.default_rng(0)
    of_draws, of_images = random.normal(0, 3, 40), random.normal(0, 2, 400)
    apart = of_draws[:, None] + of_images
    a = {draw: row + 1 for draw, row in enumerate(apart)}
    found = difference(a, {draw: np.ones(400) for draw in range(40)})
    error = np.sqrt(of_draws.var(ddof=1) / 40 + of_images.var(ddof=1) / 400)
    assert found.mean == pytest.approx(apart.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.08)


def test_only_draws_that_both_have_are_compared():
    a, b = {0: np.ones(9), 1: np.full(9, 5.0)}, {0: np.zeros(9), 2: np.full(9, -70.0)}
    assert difference(a, b).mean == 1
    assert difference(a, {2: np.zeros(9)}) is None


def test_tables_say_which_are_better_and_which_are_not_known_to_be(tmp_path):
    path = tmp_path / "compression.parquet"
    rows = [
        *rows_of("whole", [-1], share=1.0, repair="whole", top1=0.95),
        *rows_of(DEFAULT, range(5)),
        *rows_of(REPAIRED, range(5), repair="none", top1=0.2),
        *rows_of("obd", range(5), top1=0.9),
        *rows_of("random-0", range(5), top1=0.6),
        *rows_of("random-1", range(5), top1=0.5),
    ]
    merge(path, rows, ("network", "draw", "criterion", "repair"))
    lines = compression(path).splitlines()
    first = [line.split(" | ")[0].strip("| ") for line in lines if line.startswith("| ")]
    assert first[2:5] == ["obd", DEFAULT, "random"]
    [other] = [line for line in lines if line.startswith("| obd |")]
    assert "**+" in other  # clearly better than the default
    drawn = curves(read(path)[1:])
    assert set(drawn) == {"default", "best other: obd", "random", "not repaired"}
    assert 0.4 < drawn["random"][0]["top1"] < 0.7
