"""From files and URIs to batches of rows."""
