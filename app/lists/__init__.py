"""Nightly lists: the best items of many users, ranked by Ray Data; an interrupted run goes on."""
