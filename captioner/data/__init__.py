"""Data sets on disk, and their features and token ids."""
