"""`captioner completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from captioner.cli.options import show


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the script that completes commands and options in SHELL.

    For bash and zsh, add this line to ~/.bashrc or ~/.zshrc, with the name of the shell:
    eval "$(captioner completion bash)"

    For fish: captioner completion fish > ~/.config/fish/completions/captioner.fish
    """
    script_of = get_completion_class(shell)
    assert script_of
    main = context.find_root().command
    show(script_of(main, {}, "captioner", "_CAPTIONER_COMPLETE").source().strip())
