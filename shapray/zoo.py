"""Small networks to score without installing anything else: CIFAR ResNets, a CNN and a VGG for
handwritten digits.

All of them can be traced by torch.fx: no control flow depends on the data.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PaddedShortcut(nn.Module):
    """He et al. 2015, option A: every second pixel, new channels zero on both sides."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.before = new_channels // 2
        self.after = new_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        grows = channels != in_channels
        self.conv1 = nn.Conv2d(
            in_channels, channels, 3, stride=2 if grows else 1, padding=1, bias=False
        )
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = PaddedShortcut(channels - in_channels) if grows else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet for 32x32 RGB images: three stages of `n_blocks` blocks with 16, 32 and 64 channels.

    Source: He et al. 2015, Deep Residual Learning for Image Recognition, section 4.2.
    """

    def __init__(self, n_blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, n_blocks)
        self.layer2 = _stage(16, 32, n_blocks)
        self.layer3 = _stage(32, 64, n_blocks)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))  # (n, 16, 32, 32)
        x = self.layer3(self.layer2(self.layer1(x)))  # (n, 64, 8, 8)
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def _stage(in_channels: int, channels: int, n_blocks: int) -> nn.Sequential:
    rest = [BasicBlock(channels, channels) for _ in range(n_blocks - 1)]
    return nn.Sequential(BasicBlock(in_channels, channels), *rest)


def resnet20(num_classes: int = 10) -> CifarResNet:
    """ResNet-20 for CIFAR: (n, 3, 32, 32) -> (n, num_classes) logits."""
    return CifarResNet(3, num_classes)


def resnet56(num_classes: int = 10) -> CifarResNet:
    """ResNet-56 for CIFAR: (n, 3, 32, 32) -> (n, num_classes) logits."""
    return CifarResNet(9, num_classes)


class DigitsCNN(nn.Module):
    """A CNN for 8x8 grey images.

    The 16-unit convolution stands last, so that after it there are only the linear layers: all
    2**16 coalitions of an image then cost milliseconds.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 16, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(16)
        self.fc1 = nn.Linear(16 * 2 * 2, 64)
        self.fc2 = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))  # (n, 32, 8, 8)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)  # (n, 32, 4, 4)
        x = F.max_pool2d(F.relu(self.bn3(self.conv3(x))), 2)  # (n, 16, 2, 2)
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


def digits_cnn(num_classes: int = 10) -> DigitsCNN:
    """CNN for the 8x8 handwritten digits: (n, 1, 8, 8) -> (n, num_classes) logits."""
    return DigitsCNN(num_classes)


class DigitsVGG(nn.Module):
    """A VGG for 8x8 grey images: three pairs of 3x3 convolutions, each pair halving the image.

    Source: Simonyan and Zisserman 2014, Very Deep Convolutional Networks for Large-Scale Image
    Recognition; with BatchNorm, and one linear layer behind the convolutions.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.block1 = _pair(1, 16)
        self.block2 = _pair(16, 32)
        self.block3 = _pair(32, 64)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.block1(x))  # (n, 32, 2, 2)
        return self.fc(torch.flatten(self.block3(x), 1))


def _pair(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


def digits_vgg(num_classes: int = 10) -> DigitsVGG:
    """VGG for the 8x8 handwritten digits: (n, 1, 8, 8) -> (n, num_classes) logits."""
    return DigitsVGG(num_classes)
