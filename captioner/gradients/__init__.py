"""Measures, compares and draws gradients through time."""
