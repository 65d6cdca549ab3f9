"""The preparation stage, one file a step."""
