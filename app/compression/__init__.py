"""Quantise, prune, distil."""
