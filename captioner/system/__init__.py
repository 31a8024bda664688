"""Files, text, processes and memory: what captioner asks of the machine."""
