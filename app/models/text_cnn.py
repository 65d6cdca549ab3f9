"""Convolutions over the words of a title as the item tower of a retrieval model.

The words' vectors, of which each filter keeps its largest answer (Kim 2014, "Convolutional Neural Networks
for Sentence Classification"), are added to the item's embedding and its other attributes; the user's
half is that of `two_tower`. So an item without events stands where its title belongs.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from app.models.content_parts import ContentTower, TitleConvolutions, blocks_of
from app.models.two_tower import TwoTower, TwoTowerConfig
from app.tables.base import Tables


class TextCnnConfig(TwoTowerConfig):
    """Hyperparameters of two towers with convolutions over words."""

    words: int = Field(8192, ge=1, description="rows of the table of words; words that share one are alike")
    window: int = Field(
        3, ge=1, description="words that the widest filters see; there are all widths up to it"
    )


class TextCnn(TwoTower):
    """`item_rows` (…, D): embedding, convolutions over (…, T) tokens and other content, of length 1."""

    Config = TextCnnConfig
    SPACE: ClassVar[dict[str, Any]] = {**TwoTower.SPACE, "words": [2048, 8192, 32768], "window": [1, 2, 3]}
    NEEDS = (("tokens",),)
    config: TextCnnConfig

    def make_item_tower(self, tables: Tables) -> nn.Module:
        """The words' convolutions beside the other attributes."""
        config, windows = self.config, range(1, self.config.window + 1)
        encoders = [
            (block, TitleConvolutions(block.width, config.width, tables, config.words, windows, number))
            for number, block in enumerate(blocks_of(self.inputs, ("tokens",)))
        ]
        return ContentTower(self.inputs, encoders, config.width, tables)
