"""Stored events and new items, durable before they are acknowledged."""
