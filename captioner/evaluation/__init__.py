"""From a split to scores."""
