"""Embedding tables, swapped without touching a model."""
