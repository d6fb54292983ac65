"""The network of the lab: small, made of convolutions, and every batch norm folds away."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from labkit.data import CLASSES, MEAN, STD, preprocess
from labkit.errors import LabError

WHITEN_PATCH = 2  # side of the patches that the first convolution looks at, in pixels


class ModelError(LabError):
    """The network cannot be built or initialized as asked."""


class Normalize(nn.Module):
    """Shift and scale every colour, so that clients send plain pixels in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        """Map float32 `(N, 3, H, W)` in [0, 1] to zero mean and unit variance, same shape."""
        return (input - self.mean) / self.std


def conv_norm_relu(inputs: int, outputs: int, pool: bool) -> nn.Sequential:
    """Build convolution → batch norm → ReLU (→ 2×2 max pooling), in that order, so it folds.

    The convolution starts as the identity on as many channels as it can (Zagoruyko and Komodakis,
    "DiracNets", 2017): at the first step the network already passes its input through. The scale
    of the batch norm stays 1: the next layer's weights can express it, and it need not be learned.
    """
    conv = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:inputs])
    norm = nn.BatchNorm2d(outputs, momentum=0.2)  # training is short: follow faster than 0.1
    norm.weight.requires_grad_(False)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, norm=norm, relu=nn.ReLU(True))
    if pool:
        layers["pool"] = nn.MaxPool2d(2)
    return nn.Sequential(layers)


class CifarNet(nn.Module):
    """A plain convolutional network for 32×32 colour images.

    A fixed whitening convolution, three stages of two convolutions each, the mean over what is
    left of the image, and one linear layer. The design follows KellerJordan/cifar10-airbench,
    with ReLU in place of GELU because it folds and quantizes.

    Args:
        widths: Channels of the three stages.
        classes: Number of logits.
    """

    def __init__(self, widths: Sequence[int] = (32, 128, 256), classes: int = len(CLASSES)) -> None:
        super().__init__()
        if len(widths) != 3 or min(widths) < 1:
            raise ModelError(f"got widths {tuple(widths)}, expected three channel counts above 0")
        self.config: dict[str, Any] = {"widths": list(widths), "classes": classes}
        channels = 2 * 3 * WHITEN_PATCH**2  # every eigenvector and its negative: 24
        self.normalize = Normalize()
        self.whiten = nn.Conv2d(3, channels, kernel_size=WHITEN_PATCH, bias=False)
        self.whiten.weight.requires_grad_(False)
        self.relu = nn.ReLU(True)
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        for number, width in enumerate(widths, start=1):
            stages[f"stage{number}a"] = conv_norm_relu(channels, width, pool=True)
            stages[f"stage{number}b"] = conv_norm_relu(width, width, pool=False)
            channels = width
        self.stages = nn.Sequential(stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels, classes, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Classify images.

        Args:
            input: float32 `(N, 3, 32, 32)`, in [0, 1]. Training also uses smaller images.

        Returns:
            Logits, float32 `(N, 10)`.
        """
        x = self.normalize(input)  # (N, 3, 32, 32)
        x = self.relu(self.whiten(x))  # (N, 24, 31, 31)
        x = self.stages(x)  # (N, widths[2], 3, 3)
        x = self.flatten(self.pool(x))  # (N, widths[2])
        return self.classifier(x)  # (N, 10)


@torch.no_grad()
def set_whitening(model: CifarNet, pixels: NDArray[np.uint8], epsilon: float = 5e-4) -> None:
    """Set the first convolution to the whitening filters of the images, and their negatives.

    Its outputs are then uncorrelated and of equal variance, which the learning rates of all
    later layers rely on. The filters are the eigenvectors of the patches' covariance, each divided
    by the square root of its eigenvalue (PCA whitening; as a first layer: airbench).

    Args:
        model: The network; its first layer is changed in place.
        pixels: uint8 `(N, 3, 32, 32)`; a few thousand images are plenty.
        epsilon: Added to the eigenvalues, so that noise is not blown up.
    """
    images = model.normalize(torch.from_numpy(preprocess(pixels)))
    size = WHITEN_PATCH
    patches = images.unfold(2, size, 1).unfold(3, size, 1)  # (N, 3, 31, 31, 2, 2)
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * size * size)  # (N·961, 12)
    covariance = (patches.T @ patches / len(patches)).double()
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    filters = (eigenvectors / torch.sqrt(eigenvalues + epsilon)).T.flip(0)  # largest first
    filters = filters.reshape(-1, 3, size, size).float()  # (12, 3, 2, 2)
    model.whiten.weight.copy_(torch.cat([filters, -filters]))


@dataclass(frozen=True)
class LayerRow:
    """One line of the network's table.

    Attributes:
        name: Path of the module, such as `stages.stage1a.conv`.
        kind: Its class, such as `Conv2d`.
        shape: Shape of its output for one image, without the batch.
        parameters: Weights that it holds, trained or not.
        mega_macs: Multiply–accumulate operations for one image, in millions.
        trained: Whether any of its weights is trained.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    mega_macs: float
    trained: bool


def layer_table(model: nn.Module, size: int = 32) -> list[LayerRow]:
    """List every layer in the order in which an image of `size`×`size` pixels meets it."""
    rows: list[LayerRow] = []

    def record(name: str, layer: nn.Module, output: Tensor) -> None:
        parameters = list(layer.parameters())
        weight = getattr(layer, "weight", None)
        macs = 0.0
        if isinstance(layer, nn.Conv2d | nn.Linear) and weight is not None:
            macs = weight.numel() * output[0].numel() / output.shape[1] / 1e6
        rows.append(
            LayerRow(
                name,
                type(layer).__name__,
                tuple(output.shape[1:]),
                sum(parameter.numel() for parameter in parameters),
                macs,
                any(parameter.requires_grad for parameter in parameters),
            )
        )

    hooks = [
        layer.register_forward_hook(
            lambda layer, _inputs, output, name=name: record(name, layer, output)
        )
        for name, layer in model.named_modules()
        if not list(layer.children())
    ]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, size, size))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return rows


def training_flops(model: nn.Module, size: int = 32) -> float:
    """Return the floating-point operations of one training step, per image.

    Two per multiply–accumulate, forward; as many again for the gradient of the weights where they
    are trained, and for the gradient of the input where an earlier layer is trained.
    """
    flops, earlier_is_trained = 0.0, False
    for row in layer_table(model, size):
        flops += 2e6 * row.mega_macs * (1 + row.trained + earlier_is_trained)
        earlier_is_trained |= row.trained
    return flops
