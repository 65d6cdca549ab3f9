"""From rows to scores, the best first."""
