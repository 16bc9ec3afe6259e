"""The proof that units are seen by their consumers alone, of one group and of many at once."""

from itertools import permutations

import pytest
from plain import images, lively
from torch import Tensor, nn

from shapray.network.group import Channels, Group
from shapray.network.proof import leak, sealed

N_UNITS = 4
BRANCHES = "abcde"


class Branches(nn.Module):
    """Branches side by side; what one makes of the image is added to another in passing, unit by
    unit, and too faintly for any tolerance."""

    def __init__(self, into: dict[str, str]) -> None:
        super().__init__()
        self.into = into
        self.makers = nn.ModuleDict({name: nn.Conv2d(3, N_UNITS, 1) for name in BRANCHES})
        self.readers = nn.ModuleDict({name: nn.Conv2d(N_UNITS, 3, 1) for name in BRANCHES})
        self.last = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        made = {name: maker(x) for name, maker in self.makers.items()}
        passed = dict(made)
        for source, target in self.into.items():
            passed[target] = passed[target] + 1e-9 * passed[source]
        total = sum(reader(passed[name]) for name, reader in self.readers.items())
        return self.last(total.mean((2, 3)))


def _groups() -> list[Group]:
    """As if nobody had seen what goes from one branch to another."""
    units = tuple(range(N_UNITS))
    return [
        Group(
            name=f"makers.{name}",
            n_units=N_UNITS,
            kind="conv",
            modules=(f"makers.{name}", f"readers.{name}"),
            consumers=(Channels(f"readers.{name}", units),),
            flat=True,
            reason=None,
            writers=(Channels(f"makers.{name}", units),),
        )
        for name in BRANCHES
    ]


def test_many_groups_are_proved_at_once():
    model = lively(Branches({}))
    assert sealed(model, _groups(), images(1))
    assert [leak(model, group, images(1)) for group in _groups()] == [None] * len(BRANCHES)
    assert all(not module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(("source", "target"), permutations(BRANCHES, 2))
def test_a_leak_into_the_same_units_of_any_other_group_is_seen(source, target):
    model = lively(Branches({source: target}))
    assert not sealed(model, _groups(), images(1))
    leaking = [group.name for group in _groups() if leak(model, group, images(1))]
    assert leaking == [f"makers.{source}"]


def test_a_forward_that_looks_at_its_numbers_is_not_proved():
    class Strict(Branches):
        def forward(self, x: Tensor) -> Tensor:
            assert self.makers["a"](x).isfinite().all()
            return super().forward(x)

    model = lively(Strict({}))
    assert not sealed(model, _groups(), images(1))
    reason = leak(model, _groups()[0], images(1))
    assert reason is not None
    assert reason.startswith("the network's forward fails on NaN")
