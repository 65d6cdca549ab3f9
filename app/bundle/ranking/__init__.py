"""Scores, best first."""
