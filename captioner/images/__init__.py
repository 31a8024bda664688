"""Files, bytes, arrays and other images -> RGB pictures."""
