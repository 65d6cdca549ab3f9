"""Several versions of a model at once."""
