"""Comparison of models: runs with each other, folds of a log, and every model that suits the log."""
