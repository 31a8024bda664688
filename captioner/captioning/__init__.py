"""Captions for many images: into a file, to stdout, on a cluster."""
