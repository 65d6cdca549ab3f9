"""The embedded synthetic shop."""
