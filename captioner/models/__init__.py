"""What learns and what is frozen: encoder, decoder, and both as one captioner."""
