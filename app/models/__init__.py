"""Ranking models, one file each; torch alone."""
