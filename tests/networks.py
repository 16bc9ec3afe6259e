"""Small networks that have what networks have: the tests of the engine run over each of them."""

import torch
import torchvision
from torch import nn
from torch.nn import functional as F


class Vgg(nn.Module):
    """In-place activations, pooling, a flatten with several features per unit, hidden neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 7, 3, padding=1, stride=2, bias=False),
            nn.BatchNorm2d(7),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Sequential(
            nn.Linear(7 * 2 * 2, 10), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(10, 5)
        )

    def forward(self, x):
        x = self.features(x)
        return self.classifier(torch.flatten(x, 1))


class Reshaping(Vgg):
    """The batch size taken from the data, the other size from what is left."""

    def forward(self, x):
        x = self.features(x)
        return self.classifier(x.reshape(x.size(0), -1))


class Viewing(Vgg):
    """A view of contiguous memory, which a convolution in channels-last layout does not return."""

    def forward(self, x):
        x = self.features(x)
        return self.classifier(x.view(x.size(0), -1))


class Residual(nn.Module):
    """Two basic blocks: an identity shortcut and a 1x1 convolution as one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.block1 = torchvision.models.resnet.BasicBlock(6, 6)
        down = nn.Sequential(nn.Conv2d(6, 8, 1, stride=2, bias=False), nn.BatchNorm2d(8))
        self.block2 = torchvision.models.resnet.BasicBlock(6, 8, stride=2, downsample=down)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        x = self.block2(self.block1(x))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Concat(nn.Module):
    """A dense block, whose layers are read by several consumers, and two parallel branches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 3, padding=1)
        self.conv2 = nn.Conv2d(5, 6, 3, padding=1)
        self.conv3 = nn.Conv2d(11, 4, 3, padding=1)
        self.branch1 = nn.Conv2d(15, 5, 1)
        self.branch2 = nn.Conv2d(15, 4, 3, padding="same", padding_mode="reflect")
        self.mix = nn.Conv2d(9, 6, 3)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        a = torch.relu(self.conv1(x))
        b = torch.relu(self.conv2(a))
        c = torch.relu(self.conv3(torch.cat([a, b], 1)))
        x = torch.cat([a, b, c], 1)
        x = torch.cat([self.branch1(x).relu(), torch.relu(self.branch2(x))], dim=1)
        return self.head(self.mix(x).relu().mean((2, 3)))


class Separable(nn.Module):
    """Depthwise-separable convolutions with ReLU6 and Hardswish, and an inverted residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1), nn.BatchNorm2d(6), nn.ReLU6(True))
        self.expand = nn.Sequential(nn.Conv2d(6, 9, 1), nn.BatchNorm2d(9), nn.Hardswish(True))
        self.depth = nn.Sequential(
            nn.Conv2d(9, 9, 3, 1, 1, groups=9), nn.BatchNorm2d(9), nn.ReLU6(inplace=True)
        )
        self.project = nn.Sequential(nn.Conv2d(9, 6, 1), nn.BatchNorm2d(6))
        self.last = nn.Conv2d(6, 7, 1)
        self.head = nn.Linear(7, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.project(self.depth(self.expand(x)))
        return self.head(F.adaptive_avg_pool2d(F.relu6(self.last(x)), 1)[:, :, 0, 0])


class Aggregated(nn.Module):
    """A residual block with a convolution in groups of several channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.reduce = nn.Sequential(nn.Conv2d(5, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.grouped = nn.Sequential(
            nn.Conv2d(8, 6, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(6), nn.ReLU()
        )
        self.expand = nn.Conv2d(6, 5, 1)
        self.head = nn.Linear(5, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.expand(self.grouped(self.reduce(x))))
        return self.head(x.mean((2, 3)))


class Functional(nn.Module):
    """Everything as functions, additions in place, activations in place on named values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.conv3 = nn.Conv2d(6, 6, 3, padding=1)
        self.conv4 = nn.Conv2d(6, 8, 3, stride=2)
        self.fc1, self.fc2 = nn.Linear(8, 9), nn.Linear(9, 5)

    def forward(self, x):
        x = F.relu(self.conv1(x), inplace=True)
        y = F.relu(self.conv2(x))
        y = self.conv3(y)
        y += x
        y = F.relu(y, inplace=True)
        y = F.relu(self.conv4(y)).amax((2, 3))
        return self.fc2(F.gelu(self.fc1(y)))


class SqueezeExcite(nn.Module):
    """A group whose second consumer reads what the first has gated: deep."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.conv2 = nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head(torch.relu(self.conv2(x * gate)).mean((2, 3)))


class ChannelsLastMlp(nn.Module):
    """A block of ConvNeXt: linear layers that read (n, height, width, channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 2, stride=2)
        self.depth = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm = nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 11), nn.Linear(11, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.down(F.relu(self.up(y)))
        return self.head((x + y.permute(0, 3, 1, 2)).mean((2, 3)))


class Gated(nn.Module):
    """The input of one consumer is multiplied in place before the next reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.conv3, self.head = nn.Conv2d(6, 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        a = self.conv2(x)
        x *= 3.0
        return self.head((a + self.conv3(x)).relu().mean((2, 3)))


class Statement(nn.Module):
    """Activations in place whose result nobody takes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 7, 3, padding=1)
        self.head = nn.Linear(7, 5)

    def forward(self, x):
        x = self.conv1(x)
        x.relu_()
        x = self.conv2(x)
        torch.relu_(x)
        return self.head(x.mean((2, 3)))


class ThreeClasses(nn.Module):
    """Parameters of its own with three entries, like the batch that shapes are traced with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)
        self.gain = nn.Parameter(torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1))
        self.bias = nn.Parameter(torch.tensor([1.0, -1.0, 0.0]))
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        x = self.conv2(torch.relu(self.conv1(x * self.gain)))
        return self.head((x * self.gain).relu().mean((2, 3))) * self.bias + self.bias


class Modest(nn.Module):
    """Plain, to be compared with networks that compute the same in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(1.5 * self.conv2(torch.relu(self.conv1(x))).relu().mean((2, 3)))


def resnet18() -> nn.Module:
    return torchvision.models.resnet18(num_classes=20)


NETWORKS = {
    f.__name__: f
    for f in (
        Vgg,
        Reshaping,
        Viewing,
        Residual,
        Concat,
        Separable,
        Aggregated,
        Functional,
        SqueezeExcite,
        ChannelsLastMlp,
        Gated,
        Statement,
        ThreeClasses,
        resnet18,
    )
} | {"digits": None}
# the others of its groups are like these
RESNET18 = ("layer1.0.conv1", "layer3.0.conv1", "layer4.0.conv2")


def randomise(model: nn.Module) -> nn.Module:
    """A BatchNorm that does something; in every layer the first channels are never positive."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.constant_(module.bias[:2], -20.0)
        elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.3)
    return model.eval().requires_grad_(False)


def twins(*classes: type[nn.Module]) -> list[nn.Module]:
    """The same weights in two classes."""
    torch.manual_seed(0)
    first, second = (randomise(one()) for one in classes)
    second.load_state_dict(first.state_dict())
    return [first, second]
