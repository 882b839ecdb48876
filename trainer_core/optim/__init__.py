"""Optimizers, learning-rate schedules and gradient clipping, by the names of the settings."""
