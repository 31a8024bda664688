"""Draws the bundled data set again: `python -m captioner.data.scenes FOLDER [--language ru]`."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path

from captioner.data.scenes import LANGUAGES, generate
from captioner.errors import ConfigError

if __name__ == "__main__":
    parser = ArgumentParser(
        prog="python -m captioner.data.scenes", description="Draw scenes and write their captions."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--language", choices=LANGUAGES, default="en", help="of the captions (default: en)"
    )
    given = parser.parse_args()
    try:
        generate(given.folder, language=given.language)
    except ConfigError as error:
        sys.exit(f"captioner: error: {error}")
