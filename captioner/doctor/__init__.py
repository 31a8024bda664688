"""Examines a trained model."""
