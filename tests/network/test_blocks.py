"""Blocks of units, of each of which a cut takes equally many."""

from collections.abc import Sequence

import pytest

from shapray.network.blocks import blocks
from shapray.network.group import Channels, Group
from shapray.network.index_maps import check_removed, removable


def group(of_units: Sequence[int], *layers: Sequence[int]) -> Group:
    found = tuple(Channels(f"layer{i}", tuple(units)) for i, units in enumerate(layers))
    n_units = len(of_units)
    return Group("g", n_units, "conv", (), found, True, None, blocks=tuple(of_units))


def test_the_groups_of_a_convolution_are_blocks():
    assert blocks(6, [(3, range(6))]) == (0, 0, 1, 1, 2, 2)
    assert blocks(3, [(3, [0, 1, 2, 0, 1, 2, 0, 1, 2])]) == ()  # a unit is in all of them
    assert blocks(4, []) == ()


def test_of_two_convolutions_it_is_what_they_share():
    shuffled = [0, 4, 1, 5, 2, 6, 3, 7]
    assert blocks(8, [(2, range(8)), (2, shuffled)]) == (0, 0, 1, 1, 2, 2, 3, 3)
    assert blocks(8, [(2, range(8)), (4, range(8))]) == (0, 0, 1, 1, 2, 2, 3, 3)


@pytest.mark.parametrize(
    ("n_units", "convolutions"),
    [
        (4, [(4, range(4))]),  # a block of a single unit
        (4, [(2, [0, 1, -1, 2])]),  # a channel of no unit
        (6, [(2, range(4))]),  # units in no group
        (3, [(2, [0, 1, 1, 2])]),  # a unit in two groups, others in one
        (3, [(2, [0, 0, 1, 2])]),  # units of unequal size
        (6, [(2, range(6)), (3, range(6))]),  # what they share is of unequal size
    ],
)
def test_where_there_are_none(n_units, convolutions):
    assert blocks(n_units, convolutions) is None


def test_units_go_one_of_each_block_in_the_order_within_each():
    found = group([0, 0, 0, 1, 1, 1])
    assert found.step == 2
    assert removable(found, [5, 1, 4, 0, 2, 3]) == [1, 5, 0, 4]  # the last of each stays
    assert removable(found, [5, 4, 1]) == [1, 5]


def test_where_a_layer_would_have_none_left_all_of_that_step_stay():
    found = group([0, 0, 0, 1, 1, 1], [0, 1])  # a layer with two of the units
    assert removable(found, [0, 1, 2, 3, 4, 5]) == [0, 3, 2, 5]
    assert removable(found, [0, 2, 1, 3, 4, 5]) == [0, 3, 2, 4]


def test_a_cut_that_takes_unequally_many_is_refused_with_one_that_would_do():
    found = group([0, 0, 0, 1, 1, 1])
    with pytest.raises(ValueError, match=r"2 are in block 0 and 1 in block 1; \[0, 3\] would do"):
        check_removed([found], {"g": [0, 1, 4]})
    check_removed([found], {"g": [0, 1, 4, 5]})
