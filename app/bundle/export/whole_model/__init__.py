"""A whole model in one file, rows and all: what the formats outside the bundle share."""
