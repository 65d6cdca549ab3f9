"""A small convolutional network over thumbnails as the item tower of a retrieval model.

Its vector of an item's picture is added to the item's embedding and its other attributes (He and McAuley
2016, "VBPR", learns as much of a fixed vector); the user's half is that of `two_tower`. So an item without
events stands where its picture belongs. Pixels are learned from scratch: with few items given vectors
(`image_vectors`) know more.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from app.models.content_parts import ContentTower, PixelConvolutions, blocks_of
from app.models.two_tower import TwoTower, TwoTowerConfig
from app.tables.base import Tables


class ImageCnnConfig(TwoTowerConfig):
    """Hyperparameters of two towers with convolutions over pixels."""

    channels: int = Field(16, ge=1, description="filters of the first convolution, of three that double them")


class ImageCnn(TwoTower):
    """`item_rows` (…, D): embedding, convolutions over (…, 3, S, S) pixels and other content, of length 1."""

    Config = ImageCnnConfig
    SPACE: ClassVar[dict[str, Any]] = {**TwoTower.SPACE, "channels": [8, 16, 32]}
    NEEDS = (("pixels",),)
    config: ImageCnnConfig

    def make_item_tower(self, tables: Tables) -> nn.Module:
        """The pixels' convolutions beside the other attributes."""
        width, channels = self.config.width, self.config.channels
        encoders = [
            (block, PixelConvolutions(block.width, width, channels))
            for block in blocks_of(self.inputs, ("pixels",))
        ]
        return ContentTower(self.inputs, encoders, width, tables)
