"""Sends runs and models to other tools: an MLflow server or database, TensorBoard."""
