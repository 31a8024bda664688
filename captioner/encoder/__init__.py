"""The frozen CNN: turns images into features."""
