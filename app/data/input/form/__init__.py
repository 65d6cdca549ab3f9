"""What a file holds: its format and encoding, and of text its columns, from its name and its first lines."""
