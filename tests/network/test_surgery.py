import pytest
import torch
from cut_digits import EXAMPLE, REMOVED, digits, images
from plain import without
from torch import nn


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
    assert pruned(images()).shape == (4, 10)


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
    assert torch.equal(same(images()), model(images()))


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ({"conv3": range(16)}, "'conv3': all 16 units would go"),
        ({"conv3": [0, 16]}, r"'conv3': .* distinct, in \[0, 16\)"),
        ({"conv3": [-1]}, r"'conv3': .* distinct, in \[0, 16\)"),
        ({"conv3": [1, 1]}, r"'conv3': .* distinct, in \[0, 16\)"),
        ({"bn1": [0]}, "'bn1': the network has no Conv2d or Linear of that name"),
        ({"conv9": [0]}, "'conv9': the network has no"),
    ],
)
def test_impossible_plans(removed, message):
    with pytest.raises(ValueError, match=message):
        without(digits(), EXAMPLE, removed)


def test_units_that_are_coupled_or_shared_between_groups():
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(1, 4, 1)
            self.b = nn.Conv2d(1, 4, 1)
            self.folded = nn.Conv2d(1, 4, 1)
            self.fc = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            folded = self.folded(x)
            both = [self.a(x) + self.b(x), folded[:, :2] + folded[:, 2:]]
            return self.fc(torch.cat(both, 1).mean((2, 3)))

    with pytest.raises(ValueError, match="'b' shares channels with another group"):
        without(Folded(), EXAMPLE, {"a": [0], "b": [1]})
    with pytest.raises(ValueError, match=r"removing units \[0\] would remove 1 others"):
        without(Folded(), EXAMPLE, {"folded": [0]})
