"""From a request to the numbers that a model takes."""
