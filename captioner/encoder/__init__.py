"""The frozen CNN: images to features."""
