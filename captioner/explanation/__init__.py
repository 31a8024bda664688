"""What a model did with an image: what the search kept and cut, and how the states moved."""
