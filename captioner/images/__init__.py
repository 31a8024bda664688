"""From what people hold pictures in to RGB pictures."""
