"""Find training rows whose label is likely wrong, and test images that are almost in the training split."""
