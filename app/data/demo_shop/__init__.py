"""The demo shop: a synthetic event log whose truth is known."""
