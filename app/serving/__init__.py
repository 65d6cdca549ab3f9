"""Ray Serve: ingress, batching, history, metrics."""
