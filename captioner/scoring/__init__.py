"""Score and compare the captions of any system; needs no model."""
