"""Vectors of images, or any given vectors, as the item tower of a retrieval model (He 2016, "VBPR").

The vector, through one hidden layer, is added to the item's embedding and its other attributes; the
user's half is that of `two_tower`. So an item without events stands where its picture belongs.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from app.models.content_parts import ContentTower, VectorProjection, blocks_of
from app.models.two_tower import TwoTower, TwoTowerConfig
from app.tables.base import Tables


class ImageVectorsConfig(TwoTowerConfig):
    """Hyperparameters of two towers with given vectors."""

    hidden: int = Field(128, ge=1, description="floats of the layer between given vectors and the model's")


class ImageVectors(TwoTower):
    """`item_rows` (…, D): embedding, projection of (…, V) given floats and other content, of length 1."""

    Config = ImageVectorsConfig
    SPACE: ClassVar[dict[str, Any]] = {**TwoTower.SPACE, "hidden": [32, 64, 128, 256]}
    NEEDS = (("image_vector", "vector"),)
    config: ImageVectorsConfig

    def make_item_tower(self, tables: Tables) -> nn.Module:
        """The projections of vectors beside the other attributes."""
        width, hidden = self.config.width, self.config.hidden
        encoders = [
            (block, VectorProjection(block.width, width, hidden))
            for block in blocks_of(self.inputs, self.NEEDS[0])
        ]
        return ContentTower(self.inputs, encoders, width, tables)
