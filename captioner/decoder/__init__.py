"""The RNN: features and words to the next word."""
