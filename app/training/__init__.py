"""Ray Train: the loop, optimisers, several workers, checkpoints, resume."""
