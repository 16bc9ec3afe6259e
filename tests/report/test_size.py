"""A page stays small, however large the network."""

import pytest
from report.reading import Page
from simulated_run import CLASSES, simulated_run

from shapray.report.page import report

RESNET20 = {f"layer{stage}.{b}.conv1": 8 * 2**stage for stage in (1, 2, 3) for b in range(3)}
RESNET50 = {
    f"layer{stage}.{block}.conv{place}": width
    for stage, width, n_blocks in ((1, 64, 6), (2, 128, 6), (3, 512, 9), (4, 2048, 6))
    for block in range(n_blocks)
    for place in (1, 2)
}


@pytest.mark.slow
def test_resnet20_takes_at_most_a_mebibyte():
    assert len(report(simulated_run("memory://report/r20", RESNET20, CLASSES))) <= 1 << 20


@pytest.mark.slow
def test_a_group_of_many_units_takes_hardly_more_than_one_of_few():
    few, many = (
        len(report(simulated_run(f"memory://report/{n}", {"conv": n}, CLASSES[:3], side=8)))
        for n in (200, 2048)
    )
    assert many < 1.05 * few


@pytest.mark.slow
def test_resnet50_takes_at_most_five_mebibytes():
    classes = [f"class {number}" for number in range(100)]
    store = simulated_run("memory://report/r50", RESNET50, classes, side=48)
    page = report(store)
    assert len(page) <= 5 << 20
    assert len(Page(page).all("table")) > len(RESNET50)
