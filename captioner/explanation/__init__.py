"""What a model did with an image: what the search kept, how states moved, where words came from."""
