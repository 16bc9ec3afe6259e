"""Published networks: how many of their hidden units are scored, and why the others are not."""

from collections import Counter
from fnmatch import fnmatch

import pytest
from torch import nn

from jobs.benchmarks.families import ALL, EACH, SIDE, SIDES, TIMM, TORCHVISION, built, patches
from shapray.constants.place import put_in_place
from shapray.network.check import check_group
from shapray.network.cuttable import cuttable
from shapray.network.find import is_hidden

QUICK = ["resnet18", "squeezenet1_1", "shufflenet_v2_x0_5", "regnet_y_400mf"]
LARGE = ("convnext_[bl]*", "efficientnet_b[567]", "*_v2_l", "*_16gf", "*_32gf", "*_128gf")
NAMES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in " ".join(TORCHVISION.values()).split()
    if not any(fnmatch(name, pattern) for pattern in LARGE)
]
KNOWN = {  # share of the units at least, and why the others are not scored
    # attention between channels
    "edgenext_xx_small": (0.80, ("its channels are mixed by aten::bmm",)),
}


def counted(model: nn.Module, size: int, n_checked: int | None) -> tuple[int, Counter[str]]:
    """How many hidden units are scored, and how many are not, by the reason.

    Args:
        n_checked: how many groups are also masked and cut; None for all.
    """
    put_in_place(model)
    images = patches(2, size)
    network, groups = cuttable(model, images[:1])
    scored, excluded = 0, Counter[str]()
    for group in filter(is_hidden, groups):
        reason = group.reason
        if reason is None and (n_checked is None or n_checked > 0):
            n_checked = None if n_checked is None else n_checked - 1
            reason = check_group(network, group, images, seed=0)
        if reason is None:
            scored += group.n_units
        else:
            excluded[reason] += group.n_units
    return scored, excluded


def from_torchvision(name: str) -> tuple[nn.Module, int]:
    name = f"torchvision:{name}"
    return built(name), SIDES.get(name, SIDE)


@pytest.mark.parametrize("name", NAMES)
def test_torchvision(name, request):
    is_slow = request.node.get_closest_marker("slow") is not None
    scored, excluded = counted(*from_torchvision(name), n_checked=None if is_slow else 1)
    assert not any("Error" in reason for reason in excluded), excluded
    assert scored >= EACH * (scored + excluded.total()), excluded


@pytest.mark.slow
def test_all_of_torchvision():
    firsts = [names.split()[0] for names in TORCHVISION.values()]
    found = [counted(*from_torchvision(name), n_checked=0) for name in firsts]
    scored, excluded = sum(n for n, _ in found), sum(reasons.total() for _, reasons in found)
    assert scored >= ALL * (scored + excluded)


@pytest.mark.slow
def test_timm():
    pytest.importorskip("timm")
    total, total_scored = 0, 0
    for name in sorted(set(TIMM.values()) - KNOWN.keys()):
        scored, excluded = counted(built(f"timm:{name}"), SIDE, n_checked=5)
        assert not any("Error" in reason for reason in excluded), (name, excluded)
        assert scored >= EACH * (scored + excluded.total()), (name, excluded)
        total, total_scored = total + scored + excluded.total(), total_scored + scored
    assert total_scored >= ALL * total


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_what_is_known_not_to_be_scored(name):
    pytest.importorskip("timm")
    least, why = KNOWN[name]
    scored, excluded = counted(built(f"timm:{name}"), SIDE, n_checked=5)
    assert not any("Error" in reason for reason in excluded)
    assert least <= scored / (scored + excluded.total()) < EACH
    assert all(any(words in reason for words in why) for reason in excluded), excluded
