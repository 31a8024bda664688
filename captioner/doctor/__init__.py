"""Examine a trained model."""
