"""Draws the bundled data set again: `python -m captioner.data.scenes FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from captioner.data.scenes import generate
from captioner.errors import ConfigError

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m captioner.data.scenes FOLDER")
    try:
        generate(Path(sys.argv[1]))
    except ConfigError as error:
        sys.exit(f"captioner: error: {error}")
