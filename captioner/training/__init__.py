"""From a config to a trained captioner."""
