"""Pieces that models of content share: what makes a vector of an item's words, pixels or given vectors."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.features.columns import Block
from app.models.base import Inputs
from app.models.parts import Attributes
from app.tables.base import Tables

VECTORS = ("text_vector", "image_vector", "vector")  # kinds of blocks that hold a vector and a flag


def blocks_of(inputs: Inputs, kinds: Collection[str]) -> list[Block]:
    """The blocks of the item's dense features that are of these kinds."""
    return [block for block in inputs.item_blocks if block.kind in kinds]


class TitleConvolutions(nn.Module):
    """Convolutions over the words of a title (Kim 2014, "Convolutional Neural Networks for Sentence
    Classification"): of each width of a window the largest answer of each filter.

    Args:
        length: T, words of a title.
        width: floats of the result.
        words: rows of the table of words, which hashes share.
        windows: words that a filter sees at a time.
        number: of the title among those of an item, which tells their tables apart.
    """

    def __init__(
        self, length: int, width: int, tables: Tables, words: int, windows: Sequence[int], number: int = 0
    ) -> None:
        super().__init__()
        self.words = words
        self.table = tables(f"word_of_{number}", words + 1, width)
        self.filters = nn.ModuleList(nn.Conv1d(width, width, size) for size in windows if size <= length)
        self.out = nn.Linear(width * len(self.filters), width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(…, T) floats of `tokens` -> (…, width)."""
        ids = torch.where(tokens > 0, 1 + (tokens * self.words).floor(), 0).long().clamp(0, self.words)
        vectors = self.table.lookup(ids) * (tokens > 0).unsqueeze(-1)
        sequence = vectors.flatten(0, -3).transpose(1, 2)  # (N, width, T)
        largest = [F.relu(filter_(sequence)).amax(2) for filter_ in self.filters]
        rows: Tensor = self.out(torch.cat(largest, 1))
        return rows.reshape(*tokens.shape[:-1], -1)


class PixelConvolutions(nn.Module):
    """A small convolutional network over thumbnails, whose means over the picture are projected.

    Three convolutions halve the picture each (as the plain networks in He 2016, "Deep Residual Learning").

    Args:
        floats: of the block: 3 x side x side, and a last one, 1 where there is no picture, which gives zeros.
        width: floats of the result.
        channels: of the first convolution; each next one has twice as many.
    """

    def __init__(self, floats: int, width: int, channels: int = 16) -> None:
        super().__init__()
        self.side = math.isqrt((floats - 1) // 3)
        sizes = [3, channels, 2 * channels, 4 * channels]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise(sizes)
        )
        self.out = nn.Linear(sizes[-1], width)

    def forward(self, floats: Tensor) -> Tensor:
        """(…, 3 * side * side + 1) -> (…, width)."""
        picture = floats[..., :-1].reshape(-1, 3, self.side, self.side) * 2 - 1
        for convolution in self.convolutions:
            picture = F.relu(convolution(picture))
        rows: Tensor = self.out(picture.mean((2, 3)))
        return rows.reshape(*floats.shape[:-1], -1) * (1 - floats[..., -1:])


class VectorProjection(nn.Module):
    """Given vectors, whose floats are about 1, through one hidden layer into the space of the model."""

    def __init__(self, floats: int, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(floats, hidden), nn.Linear(hidden, width)

    def forward(self, floats: Tensor) -> Tensor:
        """(…, floats) -> (…, width)."""
        rows: Tensor = self.out(F.relu(self.hidden(floats)))
        return rows


class ContentTower(nn.Module):
    """One vector of all that is known of an item: some blocks by their encoders, the rest linearly, added up.

    Args:
        inputs: whose blocks are meant; floats and categories that have no encoder are attributes.
        encoders: what makes a vector (…, width) of a block, in the order of the blocks.
        width: floats of the result.
    """

    def __init__(
        self, inputs: Inputs, encoders: Sequence[tuple[Block, nn.Module]], width: int, tables: Tables
    ) -> None:
        super().__init__()
        self.blocks = [block for block, _ in encoders]
        self.encoders = nn.ModuleList(encoder for _, encoder in encoders)
        bounds = [0, *(end for b in self.blocks for end in (b.start, b.start + b.width)), inputs.item_dense]
        self.rest = list(zip(bounds[::2], bounds[1::2], strict=True))  # what lies between the blocks
        floats = sum(end - start for start, end in self.rest)
        self.attributes = Attributes("item", floats, inputs.item_categories, tables)
        self.linear = nn.Linear(self.attributes.width, width) if self.attributes.width else None
        self.width = width

    def forward(self, dense: Tensor, category: Tensor) -> Tensor:
        """(…, F) and (…, K) -> (…, width)."""
        if self.linear is None:
            vector = dense.new_zeros(*dense.shape[:-1], self.width)
        else:
            rest = torch.cat([dense[..., start:end] for start, end in self.rest], -1)
            vector = self.linear(self.attributes(rest, category))
        for block, encoder in zip(self.blocks, self.encoders, strict=True):
            vector = vector + encoder(dense[..., block.start : block.start + block.width])
        return vector
