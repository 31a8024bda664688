"""`captioner serve`: a page and an HTTP API that caption pictures."""
