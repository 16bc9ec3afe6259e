"""Published networks: all groups are found, and masked at once they are what surgery leaves."""

import pytest
import torch
import torchvision
from plain import groups_by_name, images, lively
from torch import nn

from shapray.network.check import check_group
from shapray.network.consumers import mask_consumers
from shapray.network.cuttable import cuttable
from shapray.network.surgery import prune_model
from shapray.zoo import resnet20


def test_resnet20_scores_the_padded_stream_too():
    model, x = lively(resnet20()), images(2, 32)
    network, groups = cuttable(model, x[:1])
    inner = {f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1, 2)}
    reasons = {g.name: g.reason or check_group(network, g, x, seed=0) for g in groups}
    assert {name for name, reason in reasons.items() if reason is None} == {"conv1"} | inner
    assert set(reasons) == inner | {"conv1", "linear"}
    n_units = {group.name: group.n_units for group in groups}
    assert n_units["conv1"] == 64
    (stem,) = [writer for writer in groups[0].writers if writer.module == "conv1"]
    assert stem.unit_of_channel == tuple(range(16))  # the others begin in later stages
    assert {group.name for group in groups if group.flat} >= inner


def check_zoo(model: nn.Module, size: int, n_scored: int, n_excluded: int) -> None:
    torch.manual_seed(0)
    for module in model.eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.normal_(0, 0.3)
            module.running_mean.normal_(0, 0.1)
    x = images(2, size)
    model, groups = cuttable(model, x[:1])
    reasons = {g.name: g.reason or check_group(model, g, x, seed=0) for g in groups}
    scored = [group for group in groups if reasons[group.name] is None]
    assert (len(scored), len(groups) - len(scored)) == (n_scored, n_excluded), reasons

    # All groups at once: where a coupled layer was forgotten, or indices shift, this breaks.
    removed, contexts = {}, []
    for group in scored:
        coalition = torch.rand(group.n_units) > 0.3
        coalition[0] = True
        removed[group.name] = (~coalition).nonzero().flatten().tolist()
        contexts.append(mask_consumers(model, group, coalition))
    for context in contexts:
        context.__enter__()
    masked = model(x)
    for context in contexts:
        context.__exit__(None, None, None)
    pruned = prune_model(model, groups, removed)(x)
    assert (masked - pruned).abs().max() <= 1e-4 * masked.abs().max()


def test_resnet18():
    model = torchvision.models.resnet18()
    check_zoo(model, 64, n_scored=12, n_excluded=1)
    groups = groups_by_name(model, images(1, 64))
    assert groups["layer1.0.conv1"].flat
    assert not groups["conv1"].flat
    assert "layer1.1.conv2" in groups["conv1"].modules


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "n_scored", "n_excluded"),
    [
        ("vgg11_bn", 10, 1),
        ("resnet50", 37, 1),
        ("mobilenet_v2", 25, 1),
        ("squeezenet1_1", 25, 1),
        ("densenet121", 120, 1),
        ("googlenet", 57, 1),
        ("efficientnet_b0", 40, 1),
        ("regnet_y_400mf", 37, 1),
        ("convnext_tiny", 22, 1),
    ],
)
def test_torchvision(name, n_scored, n_excluded):
    torch.manual_seed(0)
    kwargs = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    model = getattr(torchvision.models, name)(**kwargs)
    check_zoo(model, 64, n_scored, n_excluded)
