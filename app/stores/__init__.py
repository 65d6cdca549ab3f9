"""The feedback log: events and new items that a service stores, and what reads them back."""
