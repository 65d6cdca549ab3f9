"""Deploying, trying and rolling back versions."""
