"""Evaluation by logged labels (click-through): every held-out event is scored as it came, 0 or 1."""
