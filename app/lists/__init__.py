"""Offline ranking: the lists of many users at once, by Ray Data, resumable."""
