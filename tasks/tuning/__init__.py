"""What `tasks.tune` is made of: the space of a study, what proposes its trials, and what ends those not worth it."""
