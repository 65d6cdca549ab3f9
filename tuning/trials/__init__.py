"""The trials of a search: one of them, where they run, and what is known of those that ran."""
