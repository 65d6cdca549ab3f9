"""What the text of a cell means."""
