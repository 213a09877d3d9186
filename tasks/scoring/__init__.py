"""Serves `tasks.evaluate`: scores a model on a split, or on one of its parts."""
