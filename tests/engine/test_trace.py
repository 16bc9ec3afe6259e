"""A network as a graph: the network itself stays, and what cannot be traced still works."""

import warnings

import numpy as np
import pytest
import torch
from cases import assert_near, case, chains, draw
from networks import Modest, Residual, randomise, twins
from torch import nn

from shapray.config import Score
from shapray.engine.network_game import NetworkSplit
from shapray.engine.trace import fold
from shapray.network.find import find_groups
from shapray.shapley.estimators import estimate


class DataDependent(Modest):
    """The same as `Modest`; torch.fx cannot follow a condition on the data."""

    def forward(self, x):
        if x.abs().max() > 1e6:
            return self.head.bias.expand(len(x), -1)
        return super().forward(x)


def test_a_network_that_cannot_be_traced():
    """It works through hooks and gives the values of its traceable twin."""
    untraceable, traceable = twins(DataDependent, Modest)
    images, labels = case("Vgg").images, case("Vgg").labels
    with pytest.warns(UserWarning, match="cannot trace DataDependent.*slower"):
        folded = fold(untraceable, images[:1])
    groups = [g for g in find_groups(untraceable, images[:1]) if g.reason is None]
    assert {g.name for g in groups} == {"conv1", "conv2"}
    seeds = list(range(len(images)))
    for group in groups:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it was said once
            split = NetworkSplit(folded, group, images[:1])
            game = split.game(images, labels, "neg_cross_entropy")
        assert split.tail_macs > 0
        twin = NetworkSplit(fold(traceable, images[:1]), group, images[:1]).game(
            images, labels, "neg_cross_entropy"
        )
        rows, coalitions = draw(5, group.n_units, 40)
        assert_near(game.outputs(rows, coalitions), twin.outputs(rows, coalitions))
        assert_near(game.reference, twin.reference)
        asked = chains(twin, 2)
        assert_near(game.along(*asked), twin.along(*asked))
        exact = Score(estimator="exact")
        for one, other in zip(
            estimate(game, exact, seeds), estimate(twin, exact, seeds), strict=True
        ):
            np.testing.assert_allclose(one.shapley_value, other.shapley_value, rtol=0, atol=1e-4)
        game.rows = 3
        assert_near(game.outputs(rows, coalitions), twin.outputs(rows, coalitions))


def test_folding_leaves_the_network_as_it_is():
    torch.manual_seed(0)
    model = randomise(Residual())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inplace = [m.inplace for m in model.modules() if isinstance(m, nn.ReLU)]
    folded = fold(model, case("Vgg").example)
    group = next(g for g in find_groups(model, case("Vgg").example) if g.name == "block1.conv1")
    NetworkSplit(folded, group, case("Vgg").example, precision="bfloat16")
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [m.inplace for m in model.modules() if isinstance(m, nn.ReLU)] == inplace
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
