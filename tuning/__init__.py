"""Ray Tune and Optuna: the cheapest settings that keep the quality."""
