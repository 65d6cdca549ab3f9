"""From a call to its answer."""
