"""Data sets on disk, and what is made of them once: features and token ids."""
