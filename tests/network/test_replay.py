"""Passes that begin where they differ from what is known."""

import pytest
import torch
from plain import Plain, groups_by_name, images, lively
from torch import Tensor, nn

from shapray.network.consumers import mask_consumers
from shapray.network.replay import Replay


class InPlace(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu_()
        x = self.conv2(x).relu_()
        x = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.fc2(self.fc1(x).relu_())


@pytest.mark.parametrize("network", [Plain, InPlace])
@pytest.mark.parametrize("name", ["conv1", "conv2", "fc1"])
def test_a_masked_pass_is_the_same_from_its_first_consumer_on(network, name):
    model, image = lively(network()), images(1)
    group = groups_by_name(model)[name]
    consumers = [model.get_submodule(consumer.module) for consumer in group.consumers]
    replay = Replay(model, image)
    coalition = torch.arange(group.n_units) % 2 == 0
    with torch.no_grad(), mask_consumers(model, group, coalition):
        right = model(image)
        for _ in range(2):  # what is kept is not changed by a pass
            with replay.until(consumers):
                assert torch.equal(model(image), right)


def test_what_runs_earlier_is_not_computed_again():
    model, image = lively(Plain()), images(1)
    replay = Replay(model, image)
    with torch.no_grad():
        right = model(image)
        model.conv1.weight.fill_(torch.nan)
        with replay.until([model.conv2]):
            assert torch.equal(model(image), right)
        assert model(image).isnan().any()


def test_a_layer_that_is_called_again_is_computed_again():
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.again(self.again(self.first(x))).mean((2, 3))

    model, image = lively(Again()), images(1)
    with torch.no_grad():
        right = model(image)
        with Replay(model, image).until():
            assert torch.equal(model(image), right)
