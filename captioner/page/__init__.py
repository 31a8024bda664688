"""The page of `captioner serve`: templates, styles and scripts, without a build step."""
