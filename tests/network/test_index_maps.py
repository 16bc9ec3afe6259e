"""What is left of a layer, against the weights themselves: each entry of a layer is another."""

from collections.abc import Mapping, Sequence

import pytest
import torch
from networks import NETWORKS, randomise
from plain import without
from torch import nn

from shapray.network.check import check_group
from shapray.network.find import find_groups
from shapray.network.index_maps import Kept, kept_channels, removable, whole_steps
from shapray.zoo import digits_cnn


def kept(
    model: nn.Module, example: torch.Tensor, removed: Mapping[str, Sequence[int]]
) -> dict[str, Kept]:
    return kept_channels(model, find_groups(model, example), removed)


def network(name: str) -> tuple[nn.Module, torch.Tensor, dict[str, list[int]]]:
    """A network, an image, and some units of each group that can be cut."""
    torch.manual_seed(0)
    model, images = randomise(NETWORKS[name]()), torch.randn(2, 3, 8, 8)
    removed = {}
    for group in find_groups(model, images[:1]):
        if group.reason is None and check_group(model, group, images, seed=0) is None:
            order = removable(group, torch.randperm(group.n_units).tolist())
            removed[group.name] = order[: whole_steps(group, group.n_units // 2)]
    assert removed
    return model, images[:1], removed


NAMES = [name for name in NETWORKS if name not in ("digits", "resnet18")]


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_is_the_original_at_what_was_kept(name):
    model, example, removed = network(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    left = kept(model, example, removed)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())

    pruned = without(model, example, removed)
    after = pruned.state_dict()
    changed = {key.rpartition(".")[0] for key in after if after[key].shape != before[key].shape}
    assert set(left) == changed
    assert set(removed) <= changed
    for module, found in left.items():
        layer, whole = pruned.get_submodule(module), model.get_submodule(module)
        if not isinstance(whole, nn.Conv2d | nn.Linear):
            assert found.inputs == found.outputs
            for key, tensor in whole.state_dict().items():
                if tensor.ndim:
                    assert torch.equal(layer.state_dict()[key], tensor[list(found.outputs)])
            continue
        outputs, inputs = (
            range(n) if part is None else part
            for part, n in (
                (found.outputs, whole.weight.shape[0]),
                (found.inputs, getattr(whole, "in_channels", whole.weight.shape[1])),
            )
        )
        assert len(inputs) == getattr(layer, "in_channels", layer.weight.shape[1])
        expected = dense(whole)[list(outputs)][:, list(inputs)]
        assert torch.equal(dense(layer), expected)
        if layer.bias is not None:
            assert torch.equal(layer.bias, whole.bias[list(outputs)])


def dense(layer: nn.Conv2d | nn.Linear) -> torch.Tensor:
    """The weights of a convolution in groups as those of one without: zeros between groups."""
    groups = getattr(layer, "groups", 1)
    if groups == 1:
        return layer.weight
    rows, columns = layer.out_channels // groups, layer.in_channels // groups
    whole = torch.zeros(layer.out_channels, layer.in_channels, *layer.weight.shape[2:])
    for g in range(groups):
        of_group = slice(g * rows, (g + 1) * rows)
        whole[of_group, g * columns : (g + 1) * columns] = layer.weight[of_group]
    return whole


def test_what_changes_on_one_side_only():
    removed = {"conv1": [3, 0, 31], "conv3": [1, 2, 15], "fc1": list(range(0, 64, 2))}
    left = kept(digits_cnn().eval(), torch.zeros(1, 1, 8, 8), removed)
    conv1 = tuple(range(1, 3)) + tuple(range(4, 31))
    conv3 = (0, *range(3, 15))
    features = tuple(4 * channel + position for channel in conv3 for position in range(4))
    hidden = tuple(range(1, 64, 2))
    assert left == {
        "conv1": Kept(conv1, None),
        "bn1": Kept(conv1, conv1),
        "conv2": Kept(None, conv1),
        "conv3": Kept(conv3, None),
        "bn3": Kept(conv3, conv3),
        "fc1": Kept(hidden, features),
        "fc2": Kept(None, hidden),
    }


def test_norms_without_weights_and_bare_parameters():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3)
            self.norm = nn.BatchNorm2d(6, affine=False)
            self.scale = nn.Parameter(torch.rand(6, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv2(self.norm(self.conv1(x)) * self.scale).mean((2, 3))

    found = kept(Scaled().eval(), torch.zeros(1, 3, 8, 8), {"conv1": [1, 4]})
    left = (0, 2, 3, 5)
    assert found["norm"] == found["scale"] == Kept(left, left)


def test_more_weights_than_a_float_counts():
    """A layer of more weights than labels can be counted."""
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 64 * 64, 1700, bias=False), nn.ReLU(), nn.Linear(1700, 2)
    )
    left = (*range(1, 1697), 1698, 1699)
    found = kept(model.eval(), torch.zeros(1, 3, 64, 64), {"1": [0, 1697]})
    assert found == {"1": Kept(left, None), "3": Kept(None, left)}


def test_nothing_removed_and_a_plan_that_is_impossible():
    model, example = digits_cnn().eval(), torch.zeros(1, 1, 8, 8)
    assert kept(model, example, {"conv1": []}) == {}
    with pytest.raises(ValueError, match="all 32 units would go"):
        kept(model, example, {"conv1": range(32)})
    with torch.inference_mode():
        assert set(kept(model.double(), example.double(), {"fc1": [0]})) == {"fc1", "fc2"}
