"""From image files to caption records."""
