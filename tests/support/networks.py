"""Networks, images and shortcuts for the tests of images: VGG16 and ResNet50 with random weights, and tiny networks."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from embfast.images.backbones import Backbone
from embfast.images.extract import Extractor, Run
from embfast.images.pictures import Preparation, open_pictures
from embfast.images.pooling import dim_of
from embfast.images.trace import trace

SMALL = Preparation(16, 16)
VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def vgg16(width=1.0, hidden=4096, classes=1000):
    """VGG16: thirteen convolutions and three linear layers, with in-place ReLU as in torchvision."""
    layers, inputs = [], 3
    for outputs in VGG16:
        if outputs == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        outputs = int(outputs * width)
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
        inputs = outputs
    return nn.Sequential(
        nn.Sequential(*layers),
        nn.AdaptiveAvgPool2d(7),
        nn.Flatten(),
        nn.Sequential(
            nn.Linear(inputs * 49, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, classes),
        ),
    )


class Bottleneck(nn.Module):
    """ResNet's block of three convolutions; calls one ReLU module three times and adds in place."""

    def __init__(self, inputs, inner, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, 4 * inner, 1, bias=False), nn.BatchNorm2d(4 * inner)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != 4 * inner:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * inner, 1, stride, bias=False), nn.BatchNorm2d(4 * inner)
            )

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self, blocks=(3, 4, 6, 3), width=64, classes=1000):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        inputs = width
        for i, n in enumerate(blocks):
            stage = []
            for b in range(n):
                stage.append(Bottleneck(inputs, width << i, 2 if b == 0 and i else 1))
                inputs = 4 * (width << i)
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
        self.n = len(blocks)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for i in range(self.n):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.fc(self.avgpool(x).flatten(1))


class Tangled(nn.Module):
    """Cases that hooks alone get wrong: a convolution called twice, a convolution without a module, branches, and ReLU
    as a function, in place and not."""

    def __init__(self):
        super().__init__()
        self.first, self.twice = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.relu = nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.left, self.right = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 3, 1)
        self.free = nn.Parameter(torch.randn(6, 5, 1, 1))
        self.answer = nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = self.relu(self.norm(self.twice(x)))
        x = self.relu(self.norm(self.twice(x)))
        x = torch.cat([functional.gelu(self.left(x)), self.right(x)], 1)
        x = functional.conv2d(x, self.free).relu_()
        return self.answer(x.mean((2, 3)))


def seeded(make, *args, seed=0, **options):
    """A network with seeded weights, and with running statistics of batch normalisation other than 0 and 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = make(*args, **options)
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.3)
                part.running_var.uniform_(0.5, 2)
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.normal_(part.bias, 0, 0.3)
    return network.eval()


def plain(seed=0):
    """Two convolutions with ReLU, a hidden linear layer, and a classifier."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(5, 7, 3, stride=2),
            nn.BatchNorm2d(7),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(7, 6),
            nn.ReLU(),
            nn.Linear(6, 3),
        ),
        seed=seed,
    )


def photographs(n, side=16, seed=0, classes=0):
    """Smooth random images, uint8 (n, side, side, 3). Images of one class have the same tint."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (n, 4, 4, 3)).astype(np.float64)
    made = coarse.repeat(side // 4, axis=1).repeat(side // 4, axis=2)
    if classes:
        tints = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])[np.arange(n) % classes]
        made = 0.6 * made + 0.4 * tints[:, None, None, :]
    return np.clip(made + random.normal(0, 8, made.shape), 0, 255).astype(np.uint8)


def traced(network, side=16):
    return trace(network, torch.zeros(1, 3, side, side))


def traced_without_numbers(make, side=224):
    """A full-size network and its trace on torch's meta device, which computes shapes only."""
    with torch.device("meta"):
        network = make()
        return network, trace(network, torch.zeros(1, 3, side, side))


def total(points, pool="mean"):
    return sum(dim_of(point, pool) for point in points)


def extractor(network, pictures, layers="all", preparation=SMALL, **options):
    run = Run(**{name: options.pop(name) for name in list(options) if name in Run.__dataclass_fields__})
    return Extractor(Backbone(network, "test", preparation), open_pictures(pictures), layers, run=run, **options)


def features(network, pictures, layers="all", **options):
    return extractor(network, pictures, layers, **options).features(open_pictures(pictures)).matrix
