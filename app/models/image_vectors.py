"""Vectors of images, or any given vectors, as the item tower of a retrieval model (He 2016, "VBPR").

The same network as `text_vectors`, for features of another kind: an item without events stands where its
picture belongs.
"""

from __future__ import annotations

from app.models.text_vectors import TextVectors


class ImageVectors(TextVectors):
    """`item_rows` (…, D): embedding, projection of (…, V) given floats and other content, of length 1."""

    NEEDS = (("image_vector", "vector"),)
