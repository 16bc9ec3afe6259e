import pytest
import torch
from cut_digits import EXAMPLE, REMOVED, digits
from cut_digits import images as digit_images
from plain import groups_by_name, images, lively, without
from torch import Tensor, nn

from shapray.network.check import check_group


def keep(n: int, removed: list[int]) -> list[int]:
    return [unit for unit in range(n) if unit not in removed]


def test_several_groups_go_by_the_indices_of_the_original_network():
    model = digits()
    pruned = without(model, EXAMPLE, REMOVED)
    k1, k3, kf = keep(32, REMOVED["conv1"]), keep(16, REMOVED["conv3"]), keep(64, REMOVED["fc1"])
    assert torch.equal(pruned.conv1.weight, model.conv1.weight[k1])
    assert torch.equal(pruned.bn1.running_mean, model.bn1.running_mean[k1])
    assert torch.equal(pruned.conv2.weight, model.conv2.weight[:, k1])
    assert torch.equal(pruned.conv3.weight, model.conv3.weight[k3])
    features = [channel * 4 + position for channel in k3 for position in range(4)]
    assert torch.equal(pruned.fc1.weight, model.fc1.weight[kf][:, features])
    assert torch.equal(pruned.fc1.bias, model.fc1.bias[kf])
    assert torch.equal(pruned.fc2.weight, model.fc2.weight[:, kf])
    assert pruned(digit_images()).shape == (4, 10)


def test_copy_keeps_modes_and_the_original_keeps_everything():
    model = digits()
    model.conv1.weight.requires_grad_(False)
    model.bn1.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = without(model, EXAMPLE, REMOVED)
    for network in (model, pruned):
        assert not network.conv1.weight.requires_grad
        assert network.conv2.weight.requires_grad
        assert network.bn1.training
        assert not network.bn2.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    pruned.fc2.bias.data.zero_()  # a parameter that surgery did not touch is a copy, too
    assert torch.equal(model.fc2.bias, before["fc2.bias"])


def test_nothing_removed_is_the_same_network():
    model = digits()
    same = without(model, EXAMPLE, {"conv1": [], "fc1": []})
    assert torch.equal(same(digit_images()), model(digit_images()))


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ({"conv3": range(16)}, "'conv3': all 16 units would go"),
        ({"conv3": [0, 16]}, r"'conv3': .* distinct, in \[0, 16\)"),
        ({"conv3": [-1]}, r"'conv3': .* distinct, in \[0, 16\)"),
        ({"conv3": [1, 1]}, r"'conv3': .* distinct, in \[0, 16\)"),
        ({"bn1": [0]}, "'bn1': .* none of that name; it has conv1, conv2, conv3, fc1, fc2"),
        ({"conv9": [0]}, "'conv9': the network has none"),
    ],
)
def test_impossible_plans(removed, message):
    with pytest.raises(ValueError, match=message):
        without(digits(), EXAMPLE, removed)


class Folded(nn.Module):
    """Two layers added up, and one whose channels are added up in pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.folded, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.folded(x).chunk(2, 1)
        return self.fc(torch.cat([self.a(x) + self.b(x), left + right], 1).mean((2, 3)))


def test_channels_that_go_together_are_one_unit():
    model = lively(Folded())
    groups = groups_by_name(model)
    assert {name: group.n_units for name, group in groups.items()} == {"a": 4, "folded": 2, "fc": 2}
    pruned = without(model, images()[:1], {"a": [0, 2], "folded": [1]})
    assert torch.equal(pruned.b.weight, model.b.weight[[1, 3]])
    assert torch.equal(pruned.folded.weight, model.folded.weight[[0, 2]])
    assert torch.equal(pruned.fc.weight, model.fc.weight[:, [1, 3, 4]])
    for name in ("a", "folded"):
        assert check_group(model, groups[name], images(), seed=0) is None
