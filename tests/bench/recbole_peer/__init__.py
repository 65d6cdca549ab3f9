"""RecBole 1.2.1 in an environment of its own: how it is made, and the programs that run in it."""
