"""Candidates and the choice among them."""
