"""From a checkpoint to a bundle; may import torch."""
