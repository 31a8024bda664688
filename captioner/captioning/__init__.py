"""Caption many images: to stdout, into a file, or on a cluster."""
