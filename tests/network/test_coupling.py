"""What operations on numbers mean for channels: which go together, which cannot be followed."""

import torch

from shapray.network.coupling import Coupling


def channels(coupling: Coupling, n: int) -> torch.Tensor:
    """Labels of a new layer's outputs, (1, n, 2, 2)."""
    return coupling.classes.fresh(n).view(1, n, 1, 1).expand(1, n, 2, 2).clone()


def classes(coupling: Coupling, labels: torch.Tensor) -> list[int]:
    return coupling.classes.found(labels[0, :, 0, 0]).tolist()


def test_entries_that_meet_go_together():
    coupling = Coupling()
    a, b = channels(coupling, 3), channels(coupling, 3)
    met = coupling.together([a, b], "")
    assert classes(coupling, met) == classes(coupling, a) == classes(coupling, b) == [4, 5, 6]
    assert coupling.reasons() == {}


def test_what_meets_no_channel_keeps_its_own():
    coupling = Coupling()
    a, b = channels(coupling, 2), channels(coupling, 2)
    a[:, 0], b[:, 1] = 0, 0  # padded
    assert classes(coupling, coupling.together([a, b], "")) == [3, 2]


def test_a_gate_that_is_spread_over_channels_goes_with_none():
    coupling = Coupling()
    a, gate = channels(coupling, 3), channels(coupling, 1)
    for operands in ([a, gate], [gate, a]):
        met = coupling.together(operands, "its channel is spread")
        assert classes(coupling, met) == [1, 2, 3]
    assert coupling.reasons() == {4: "its channel is spread"}


def test_a_parameter_that_is_spread_excludes_nothing():
    coupling = Coupling()
    parameter = coupling.fresh_parameter(1).view(1, 1, 1, 1)
    a = channels(coupling, 3)
    assert classes(coupling, coupling.together([a, parameter], "spread")) == [2, 3, 4]
    assert coupling.reasons() == {}


def test_branches_are_united_and_channels_are_not():
    coupling = Coupling()
    one, other = channels(coupling, 3), channels(coupling, 3)
    both = torch.stack([one, other], 1)  # (1, branch, channel, 2, 2)
    summed = coupling.grouped_along(both, [1])
    assert classes(coupling, summed) == classes(coupling, one) == [4, 5, 6]
    assert coupling.grouped_along(one, [1]) is None  # a mean over channels
    assert classes(coupling, one) == [4, 5, 6]


def test_one_weight_for_several_makes_one_of_them():
    coupling = Coupling()
    a = channels(coupling, 4)
    found = coupling.one_along(a.view(1, 2, 2, 2, 2), [0, 2, 3, 4])
    assert coupling.classes.found(found).tolist() == [2, 4]
    assert classes(coupling, a) == [2, 2, 4, 4]
    assert coupling.same_along(a, [0, 1]) is None
    assert coupling.same_along(a[:, :2], [0, 1, 2, 3]) is not None


def test_a_mixture_excludes_only_when_something_is_made_of_it():
    coupling = Coupling()
    a, b = channels(coupling, 3), channels(coupling, 2)
    mean = coupling.mixture(a, "its channels are mixed by a mean").expand(1, 1, 2, 2)
    coupling.mixture(b, "its channels are mixed by a sum")  # nobody reads it
    assert coupling.reasons() == {}
    assert coupling.made_of(mean) == {1, 2, 3}
    met = coupling.together([b, mean], "")
    assert classes(coupling, met) == [4, 5]  # the mixture is no channel
    assert coupling.reasons() == dict.fromkeys([1, 2, 3], "its channels are mixed by a mean")


def test_a_mixture_of_a_mixture_is_of_the_channels():
    coupling = Coupling()
    a = channels(coupling, 2)
    mean = coupling.mixture(a, "by a mean")
    coupling.exclude(coupling.mixture(mean, "by a root"), "read")
    assert coupling.reasons() == {1: "by a mean", 2: "by a mean"}


def test_a_reason_holds_for_all_that_go_together_and_the_first_one_counts():
    coupling = Coupling()
    a, b = channels(coupling, 2), channels(coupling, 2)
    coupling.exclude(a[:, 0], "the first")
    coupling.exclude(a, "the second")
    coupling.together([a, b], "")
    assert coupling.reasons() == {3: "the first", 4: "the second"}
