"""A small member of every family of convolutional networks, as its library's own classes make it,
and the images that it is tried on. Runs name them: ``families:network``, ``families:noise``."""

import warnings
from collections.abc import Callable
from functools import partial

import timm
import torch
from timm.layers import GroupNormAct, StdConv2d
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.ghostnet import GhostNet
from timm.models.hrnet import HighResolutionNet
from timm.models.resnetv2 import ResNetV2
from torch import nn
from torchvision.models import (
    VGG,
    AlexNet,
    ConvNeXt,
    DenseNet,
    EfficientNet,
    GoogLeNet,
    Inception3,
    MNASNet,
    MobileNetV2,
    MobileNetV3,
    RegNet,
    ResNet,
    ShuffleNetV2,
    SqueezeNet,
)
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.googlenet import Inception, InceptionAux
from torchvision.models.inception import (
    BasicConv2d,
    InceptionA,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
)
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.squeezenet import Fire
from torchvision.models.vgg import make_layers

from jobs.benchmarks.families import lively, patches
from shapray.zoo import CifarResNet

CLASSES = 10
Family = Callable[[], nn.Module]


def network(family: str) -> nn.Module:
    """The same one each time, lively."""
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore"):  # how weights are begun
        model = FAMILIES[family]()
    return lively(model, SIZES.get(family, 32))


def noise(n_images: int, size: int) -> list[tuple[torch.Tensor, int]]:
    """Images of nothing, and labels."""
    return [(image, i % CLASSES) for i, image in enumerate(patches(n_images, size))]


# ---- torchvision's -------------------------------------------------------------------------------


def narrow_alexnet() -> nn.Module:
    with torch.device("meta"):  # large, and replaced
        model = AlexNet(CLASSES)
    widths = iter((8, 12, 16, 12, 8))
    model.features = rebuilt(model.features, 3, widths)
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    model.classifier = rebuilt(model.classifier, 8 * 2 * 2, iter((24, 16, CLASSES)))
    return model


def narrow_vgg(batch_norm: bool) -> nn.Module:
    widths = [8, "M", 12, "M", 16, 16, "M"]
    features = make_layers(widths, batch_norm=batch_norm)
    with torch.device("meta"):  # large, and replaced
        model = VGG(features, CLASSES, init_weights=False)
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    model.classifier = rebuilt(model.classifier, 16 * 2 * 2, iter((24, 16, CLASSES)))
    return model


def rebuilt(layers: nn.Sequential, n_inputs: int, widths) -> nn.Sequential:
    """The same layers of other widths."""
    made = []
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            width = next(widths)
            made.append(nn.Conv2d(n_inputs, width, layer.kernel_size, layer.stride, layer.padding))
            n_inputs = width
        elif isinstance(layer, nn.Linear):
            width = next(widths)
            made.append(nn.Linear(n_inputs, width))
            n_inputs = width
        else:
            made.append(layer)
    return nn.Sequential(*made)


def narrow_squeezenet() -> nn.Module:
    model = SqueezeNet("1_1", CLASSES)
    model.features = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(8, 4, 8, 8),
        Fire(16, 4, 12, 12),
    )
    model.classifier[1] = nn.Conv2d(24, CLASSES, 1)
    return model


class NarrowResNet(ResNet):
    """Stages of 8, 16, 32 and 64 planes behind a stem of 64 channels."""

    def __init__(self, block, **settings) -> None:
        super().__init__(block, [1, 2, 1, 1], num_classes=CLASSES, **settings)
        self.fc = nn.Linear(64 * block.expansion, CLASSES)

    def _make_layer(self, block, planes, *rest, **settings):
        return super()._make_layer(block, planes // 8, *rest, **settings)


def thin(n_inputs: int, n_outputs: int, **settings) -> nn.Module:
    """A convolution of GoogLeNet and Inception with an eighth of the channels."""
    n_inputs = n_inputs if n_inputs == 3 else n_inputs // 8
    return BasicConv2d(n_inputs, n_outputs // 8, **settings)


def narrow_googlenet() -> nn.Module:
    blocks = [
        thin,
        partial(Inception, conv_block=thin),
        # a linear layer reads it, as wide as it ever was
        partial(InceptionAux, conv_block=lambda n, m, **settings: thin(n, 8 * m, **settings)),
    ]
    model = GoogLeNet(CLASSES, init_weights=False, blocks=blocks)
    model.fc = nn.Linear(1024 // 8, CLASSES)
    return model


def narrow_inception() -> nn.Module:
    kinds = (InceptionA, InceptionB, InceptionC, InceptionD, InceptionE)
    blocks = [thin, *(partial(kind, conv_block=thin) for kind in kinds), InceptionAux]
    model = Inception3(CLASSES, aux_logits=False, init_weights=False, inception_blocks=blocks)
    model.fc = nn.Linear(2048 // 8, CLASSES)
    return model


def narrow_mobilenet_v3() -> nn.Module:
    setting = partial(InvertedResidualConfig, dilation=1, width_mult=1.0)
    settings = [
        setting(8, 3, 8, 8, True, "RE", 2),
        setting(8, 3, 24, 16, False, "RE", 2),
        setting(16, 5, 32, 16, True, "HS", 1),
        setting(16, 5, 32, 24, True, "HS", 2),
    ]
    return MobileNetV3(settings, 32, CLASSES)


def narrow_efficientnet() -> nn.Module:
    mbconv = partial(MBConvConfig, width_mult=1.0, depth_mult=1.0)
    settings = [
        FusedMBConvConfig(1, 3, 1, 8, 8, 1),
        FusedMBConvConfig(4, 3, 2, 8, 8, 1),
        mbconv(4, 3, 2, 8, 16, 2),
        mbconv(4, 5, 1, 16, 16, 1),
    ]
    return EfficientNet(settings, 0.2, 0.2, CLASSES, last_channel=48)


def narrow_regnet(se_ratio: float | None) -> nn.Module:
    blocks = BlockParams.from_init_params(
        depth=5, w_0=16, w_a=8.0, w_m=1.7, group_width=8, se_ratio=se_ratio
    )
    return RegNet(blocks, CLASSES, stem_width=16)


def narrow_convnext() -> nn.Module:
    stages = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, 24, 2), CNBlockConfig(24, None, 1)]
    return ConvNeXt(stages, 0.1, num_classes=CLASSES)


TORCHVISION: dict[str, Family] = {
    "alexnet": narrow_alexnet,
    "vgg": partial(narrow_vgg, batch_norm=False),
    "vgg_bn": partial(narrow_vgg, batch_norm=True),
    "squeezenet": narrow_squeezenet,
    "resnet": partial(NarrowResNet, BasicBlock),
    "resnet_bottleneck": partial(NarrowResNet, Bottleneck),
    "resnext": partial(NarrowResNet, Bottleneck, groups=4, width_per_group=32),
    "wide_resnet": partial(NarrowResNet, Bottleneck, width_per_group=128),
    "densenet": partial(DenseNet, 8, (2, 2), num_init_features=16, bn_size=2, num_classes=CLASSES),
    "googlenet": narrow_googlenet,
    "inception": narrow_inception,
    "mobilenet_v2": lambda: MobileNetV2(CLASSES, 1.0, [[1, 8, 1, 1], [6, 8, 2, 2], [6, 16, 2, 2]]),
    "mobilenet_v3": narrow_mobilenet_v3,
    "mnasnet": partial(MNASNet, 0.1, CLASSES),
    "shufflenet": partial(ShuffleNetV2, [2, 2, 2], [8, 16, 24, 32, 48], num_classes=CLASSES),
    "efficientnet": narrow_efficientnet,
    "regnet_x": partial(narrow_regnet, None),
    "regnet_y": partial(narrow_regnet, 0.25),
    "convnext": narrow_convnext,
}

# ---- timm's --------------------------------------------------------------------------------------

STAGES = {"layers": [1, 2, 1, 1], "channels": [16, 24, 32, 48]}


def of_timm(name: str, **settings) -> nn.Module:
    return timm.create_model(name, num_classes=CLASSES, **settings)


def narrow_hrnet() -> nn.Module:
    def stage(n_branches: int, block: str) -> dict:
        widths = (8, 12, 16, 20)[:n_branches]
        return {
            "num_modules": 1,
            "num_branches": n_branches,
            "block_type": block,
            "num_blocks": (1,) * n_branches,
            "num_channels": widths,
            "fuse_method": "SUM",
        }

    class NarrowHead(HighResolutionNet):
        def _make_head(self, widths, **_):
            self.num_features = self.head_hidden_size = 48
            block = timm.models.resnet.Bottleneck
            wider = [self._make_layer(block, width, 4, 1) for width in widths]
            down = [convolution(16, 16, 3, stride=2, padding=1) for _ in widths[1:]]
            return nn.ModuleList(wider), nn.ModuleList(down), convolution(16, 48, 1)

    def convolution(*settings, **more) -> nn.Module:
        layer = nn.Conv2d(*settings, **more)
        return nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU(inplace=True))

    stages = {f"stage{n}": stage(n, "BASIC" if n > 1 else "BOTTLENECK") for n in range(1, 5)}
    return NarrowHead({"stem_width": 16, **stages}, num_classes=CLASSES)


def narrow_repvgg() -> nn.Module:
    blocks = tuple(ByoBlockCfg("rep", d=d, c=c, s=2) for d, c in ((2, 8), (2, 12), (1, 16)))
    return ByobNet(ByoModelCfg(blocks, stem_type="rep", stem_chs=8), num_classes=CLASSES)


def narrow_ghostnet() -> nn.Module:
    stages = [[[3, 8, 8, 0, 1]], [[3, 24, 12, 0, 2]], [[5, 36, 12, 0.25, 1], [5, 36, 16, 0.25, 2]]]
    return GhostNet(stages, CLASSES, width=1.0)


def narrow_resnet_v2() -> nn.Module:
    return ResNetV2(
        **STAGES,
        num_classes=CLASSES,
        stem_chs=16,
        stem_type="fixed",
        bottle_ratio=0.5,
        norm_layer=partial(GroupNormAct, num_groups=4),
        conv_layer=partial(StdConv2d, eps=1e-8),
    )


TIMM: dict[str, Family] = {
    "convnext_v2": partial(of_timm, "convnextv2_atto", depths=(1, 1, 2, 1), dims=(8, 12, 16, 24)),
    "nfnet": partial(
        of_timm,
        "dm_nfnet_f0",
        depths=(1, 2, 1, 1),
        channels=(16, 32, 32, 48),
        stem_chs=16,
        group_size=8,
        num_features=48,
    ),
    "ghostnet": narrow_ghostnet,
    "resnet_v2": narrow_resnet_v2,
    "hrnet": narrow_hrnet,
    "repvgg": narrow_repvgg,
    "fastvit": partial(
        of_timm, "fastvit_t8", layers=(1, 1, 1, 1), embed_dims=(8, 16, 32, 32), cls_ratio=1.0
    ),
    "rexnet": partial(
        of_timm, "rexnet_100", initial_chs=8, final_chs=32, width_mult=0.5, depth_mult=0.5
    ),
    "skresnet": partial(of_timm, "skresnet18", **STAGES, stem_width=16),
    "resnest": partial(of_timm, "resnest14d", **STAGES, stem_width=8),
}
FAMILIES = TORCHVISION | TIMM | {"cifar_resnet": partial(CifarResNet, 1, CLASSES)}
SIZES = {"inception": 80, "googlenet": 64, "densenet": 64, "alexnet": 64}
