"""Write the man pages of captioner and its commands into a folder.

    python scripts/man.py FOLDER
    man FOLDER/captioner-caption.1

To let `man captioner` find them, write them to ~/.local/share/man/man1.
"""

import sys
from pathlib import Path

import click
from click_man.core import write_man_pages

from captioner.cli import COMMANDS, main
from captioner.system.version import __version__


def write(folder: Path) -> None:
    """Write one page for each command."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, short in COMMANDS.items():
        command = main.get_command(click.Context(main), name)
        assert command
        command.short_help = short
        main.add_command(command, name)  # click-man reads commands that are already imported
    write_man_pages("captioner", main, version=__version__, target_dir=str(folder))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write(Path(sys.argv[1]))
