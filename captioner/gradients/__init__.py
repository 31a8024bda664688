"""Gradients through time: measured on one batch, studied before and after training, drawn."""
