"""`captioner completion`."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from captioner.cli.options import show

SHELLS: dict[str, type[ShellComplete]] = {
    "bash": BashComplete,
    "zsh": ZshComplete,
    "fish": FishComplete,
}


@click.command("completion")
@click.argument("shell", type=click.Choice(tuple(SHELLS)))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the script that completes commands and options in SHELL.

    For bash and zsh, add this line to ~/.bashrc or ~/.zshrc, with the name of the shell:
    eval "$(captioner completion bash)"

    For fish: captioner completion fish > ~/.config/fish/completions/captioner.fish
    """
    main = context.find_root().command
    show(SHELLS[shell](main, {}, "captioner", "_CAPTIONER_COMPLETE").source().strip())
