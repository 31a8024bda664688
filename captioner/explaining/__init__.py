"""Explain the words of one caption: in the terminal, as a picture, as a page."""
