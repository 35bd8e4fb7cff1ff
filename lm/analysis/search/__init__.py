"""Searches for good options over many trainings and workers, with Optuna: `char-lm sweep --search`."""
