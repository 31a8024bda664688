"""The version of captioner."""

__version__ = "0.2.0.dev0"
