"""Ray Data: sources, cleaning, splits, the prepared data set, the demo shop."""
