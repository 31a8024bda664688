"""Shows what a data set holds, without training."""
