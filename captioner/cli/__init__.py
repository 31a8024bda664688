"""The command line: one file per verb; each parses, calls one function and prints."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from captioner.errors import CaptionerError, ConfigError, within_memory
from captioner.system.foreign import MAX_LINE, message, plain
from captioner.system.version import __version__

# What each verb does, in the order people meet them; here, so that --help imports none of them.
COMMANDS = {
    "train": "Train a captioner.",
    "caption": "Write captions for images, folders or globs.",
    "evaluate": "Caption a split of a data set and score the captions.",
    "score": "Score the captions of any system against references.",
    "compare": "Say which of two systems is better, and how surely.",
    "doctor": "Find out why captions are poor, or all the same.",
    "gradients": "Show how gradients travel back through time, vanish and explode.",
    "features": "Fill the feature store ahead of training; check, clear or prune stores.",
}

INTERRUPTED = 130  # the exit code of what Ctrl-C ends


class Commands(click.Group):
    """Commands are imported when they are needed, and none imports torch before it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the verbs in the order people meet them."""
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the verbs without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one verb."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"captioner.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Turn every foreseen error into its message and an exit code."""
        try:
            with _usage_errors(), within_memory(f"to {ctx.invoked_subcommand or 'start'}"):
                return super().invoke(ctx)
        except CaptionerError as error:
            _say(f"error: {error}")
            ctx.exit(2 if isinstance(error, ConfigError) else 1)
        except KeyboardInterrupt as stop:  # click would only say that it aborted
            _say(f"{stop if stop.args else 'stopped'}")
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:  # the reader of our captions has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)
        except OSError as error:  # a folder that cannot be written to, a full disk
            where = f"{plain(error.filename)}: " if error.filename else ""
            _say(f"error: {where}{error.strerror or plain(error)}")
            ctx.exit(1)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the command line before a verb."""
        with _usage_errors():
            return super().make_context(*args, **kwargs)


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Make what click says of arguments as short and printable as our own errors are."""
    try:
        yield
    except click.ClickException as error:
        text = plain(error.format_message(), MAX_LINE)
        error.format_message = lambda: text  # type: ignore[method-assign]
        raise


def _say(text: str) -> None:
    click.echo(message(f"captioner: {text}"), err=True)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name="captioner")
def main() -> None:
    """Image captioning you can trust: a frozen CNN starts an RNN, the RNN writes the caption."""
