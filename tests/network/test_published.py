"""Published networks: how many of their hidden units are scored, and why the others are not."""

import warnings
from collections import Counter

import pytest
import torch
import torchvision
from torch import nn

from shapray.constants.place import put_in_place
from shapray.network.check import check_group
from shapray.network.cuttable import cuttable

EACH, ALL = 0.95, 0.99  # of the hidden units
UNHIDDEN = "its units are the network's outputs"
UNCALLED = "never called, or the network's output does not depend on it"  # heads for training

FAMILIES = {
    "alexnet": ["alexnet"],
    "vgg": ["vgg11", "vgg11_bn", "vgg13", "vgg16_bn", "vgg19"],
    "squeezenet": ["squeezenet1_1", "squeezenet1_0"],
    "resnet": ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"],
    "wide_resnet": ["wide_resnet50_2", "wide_resnet101_2"],
    "resnext": ["resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"],
    "densenet": ["densenet121", "densenet161", "densenet169", "densenet201"],
    "googlenet": ["googlenet"],
    "inception": ["inception_v3"],
    "mobilenet_v2": ["mobilenet_v2"],
    "mobilenet_v3": ["mobilenet_v3_small", "mobilenet_v3_large"],
    "mnasnet": ["mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3"],
    "shufflenet": [f"shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0")],
    "efficientnet": [f"efficientnet_{size}" for size in ("b0", "b1", "b2", "b3", "b4")],
    "efficientnet_v2": [f"efficientnet_v2_{size}" for size in ("s", "m")],
    "regnet_x": ["regnet_x_400mf", "regnet_x_800mf", "regnet_x_3_2gf", "regnet_x_8gf"],
    "regnet_y": ["regnet_y_400mf", "regnet_y_800mf", "regnet_y_3_2gf", "regnet_y_8gf"],
    "convnext": ["convnext_tiny", "convnext_small"],
}
QUICK = ["resnet18", "squeezenet1_1", "shufflenet_v2_x0_5", "regnet_y_400mf"]
NAMES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for names in FAMILIES.values()
    for name in names
]

TIMM = [
    "convnextv2_atto",
    "cspresnet50",
    "dla34",
    "dm_nfnet_f0",
    "dpn68",
    "eca_nfnet_l0",
    "ese_vovnet19b_dw",
    "fastvit_t8",
    "ghostnet_100",
    "hgnetv2_b0",
    "hrnet_w18_small",
    "inception_next_tiny",
    "lcnet_050",
    "mixnet_s",
    "mobilenetv4_conv_small",
    "mobileone_s0",
    "nf_regnet_b0",
    "regnetx_002",
    "repvgg_a0",
    "res2net50_26w_4s",
    "resnetv2_50",
    "rexnet_100",
    "selecsls42",
    "skresnet18",
    "tf_efficientnet_lite0",
    "xception41",
]
KNOWN = {  # share of the units at least, and why the others are not scored
    # attention between channels
    "edgenext_xx_small": (0.80, ("its channels are mixed by aten::bmm",)),
    # the branches of an attention are the groups of one convolution: all go at once
    "resnest14d": (0.80, ("its channel is spread over others by aten::mul", "a single unit")),
}


def counted(model: nn.Module, size: int, n_checked: int | None) -> tuple[int, Counter[str]]:
    """How many hidden units are scored, and how many are not, by the reason.

    Args:
        n_checked: how many groups are also masked and cut; None for all.
    """
    generator = torch.Generator().manual_seed(0)
    for module in model.eval().modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            if module.bias is not None:
                module.bias.data.normal_(0, 0.3, generator=generator)
    put_in_place(model)
    images = torch.randn(2, 3, size, size, generator=generator)
    network, groups = cuttable(model, images[:1])
    scored, excluded = 0, Counter[str]()
    for group in groups:
        reason = group.reason
        if reason is None and (n_checked is None or n_checked > 0):
            n_checked = None if n_checked is None else n_checked - 1
            reason = check_group(network, group, images, seed=0)
        if reason is None:
            scored += group.n_units
        elif reason not in (UNHIDDEN, UNCALLED):
            excluded[reason] += group.n_units
    return scored, excluded


def built(name: str) -> tuple[nn.Module, int]:
    torch.manual_seed(0)
    kwargs = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # how weights are begun
        model = torchvision.models.get_model(name, weights=None, **kwargs)
    return model, 128 if name == "inception_v3" else 64


@pytest.mark.parametrize("name", NAMES)
def test_torchvision(name, request):
    is_slow = request.node.get_closest_marker("slow") is not None
    scored, excluded = counted(*built(name), n_checked=None if is_slow else 1)
    assert not any("Error" in reason for reason in excluded), excluded
    assert scored >= EACH * (scored + excluded.total()), excluded


@pytest.mark.slow
def test_all_of_torchvision():
    found = [counted(*built(names[0]), n_checked=0) for names in FAMILIES.values()]
    scored, excluded = sum(n for n, _ in found), sum(reasons.total() for _, reasons in found)
    assert scored >= ALL * (scored + excluded)


@pytest.mark.slow
def test_timm():
    timm = pytest.importorskip("timm")
    total, total_scored = 0, 0
    for name in TIMM:
        torch.manual_seed(0)
        scored, excluded = counted(timm.create_model(name, pretrained=False), 64, n_checked=5)
        assert not any("Error" in reason for reason in excluded), (name, excluded)
        assert scored >= EACH * (scored + excluded.total()), (name, excluded)
        total, total_scored = total + scored + excluded.total(), total_scored + scored
    assert total_scored >= ALL * total


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_what_is_known_not_to_be_scored(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    least, why = KNOWN[name]
    scored, excluded = counted(timm.create_model(name, pretrained=False), 64, n_checked=5)
    assert not any("Error" in reason for reason in excluded)
    assert least <= scored / (scored + excluded.total()) < EACH
    assert all(any(words in reason for words in why) for reason in excluded), excluded
