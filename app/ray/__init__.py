"""Ray's session and the processes that come with it."""
