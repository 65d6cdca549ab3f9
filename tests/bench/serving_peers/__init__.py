"""The same ranking behind other servers, each in an environment of its own."""
