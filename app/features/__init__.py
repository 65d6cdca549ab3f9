"""Features: one definition that runs over a whole column and for one request."""
