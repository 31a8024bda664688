"""The command line: one file per command; each parses, calls one function and prints."""

from __future__ import annotations

import errno
import importlib
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from captioner.errors import (
    SYNONYMS,
    CaptionerError,
    ConfigError,
    harmless,
    suggest,
    within_memory,
)
from captioner.system.disk import STDOUT, advice
from captioner.system.foreign import MAX_LINE, message, plain

# Listed here so that --help imports no command; in the order of a typical workflow.
COMMANDS = {
    "data": "Show what a data set holds, without training.",
    "train": "Train a captioner.",
    "caption": "Write captions for images, folders or globs.",
    "merge": "Join the parts of a captioning job to one file.",
    "status": "Show how far a captioning job is, running or not.",
    "explain": "Show where each word of a caption came from.",
    "models": "List the bundled models and the runs, with their scores.",
    "evaluate": "Caption a split of a data set and score the captions.",
    "score": "Score the captions of any system against references.",
    "compare": "Compare the captions of two systems, with significance tests.",
    "doctor": "Find out why captions are poor or all the same.",
    "gradients": "Show how gradients travel back through time, vanish and explode.",
    "serve": "Serve a page to try models on, and an HTTP API.",
    "export": "Write a model as ONNX or torch programs that need no captioner.",
    "publish": "Upload a model to the Hugging Face Hub.",
    "features": "Fill the feature store ahead of training; check, clear or prune stores.",
    "completion": "Print the script that completes commands in a shell.",
    "env": "Show versions, machine and device, for a report of a bug.",
}

WORDS = "captioner.words"
# The argument of the Python API that a message begins with.
ARGUMENT = re.compile(r"(?:decoding\.)?(\w+)(?=:)|(device)(?= )")
INTERRUPTED = 130  # exit code after Ctrl-C


class Commands(click.Group):
    """Import each command only when it is needed; none imports torch before it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the commands in the order of `COMMANDS`."""
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"captioner.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Turn every expected error into a message and an exit code."""
        try:
            with _expected_errors(), within_memory(f"to {ctx.invoked_subcommand or 'start'}"):
                return super().invoke(ctx)
        except CaptionerError as error:
            _say(f"error: {self._as_typed(str(error), ctx)}")
            ctx.exit(2 if isinstance(error, ConfigError) else 1)
        except KeyboardInterrupt as stop:  # click prints only "Aborted!"
            _say(f"{stop if stop.args else 'stopped'}")
            ctx.exit(INTERRUPTED)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the words of the command line for messages."""
        ctx.meta[WORDS] = {word.partition("=")[0] for word in args}
        return super().parse_args(ctx, args)

    def _as_typed(self, text: str, ctx: click.Context) -> str:
        """Name the option that the user typed instead of the argument of the Python API."""
        command = self.get_command(ctx, ctx.invoked_subcommand or "")
        argument = ARGUMENT.match(text)
        for option in command.params if command and argument else ():
            if argument and option.name in argument.groups():
                typed = next((name for name in option.opts if name in ctx.meta[WORDS]), None)
                return f"{typed}{text[argument.end() :]}" if typed else text
        return text

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Prepare the streams and parse the options before the command name."""
        _prepare_streams()
        with _expected_errors():
            return super().make_context(*args, **kwargs)


@contextmanager
def _expected_errors() -> Iterator[None]:
    """Make errors of click and of files as short and printable as captioner's own errors."""
    try:
        yield
    except click.ClickException as error:
        hint = _hint(error) if isinstance(error, click.UsageError) else ""
        if isinstance(error, click.NoSuchOption):
            found = [] if hint else harmless(error.possibilities or ())
            vars(error).update(possibilities=found)
        text = plain(error.format_message(), MAX_LINE) + hint
        error.format_message = lambda: text  # type: ignore[method-assign]
        raise
    except OSError as error:  # a folder that cannot be written to, a full disk, a closed pipe
        if not error.filename:  # of stdout: Python would flush it again at exit
            _discard_stdout()
        if not isinstance(error, BrokenPipeError):
            where = error.filename or ("stdout" if error.errno in STDOUT else "")
            reason = f"{error.strerror or plain(error)}{advice(error)}"
            _say(f"error: {plain(where)}{': ' if where else ''}{reason}")
        raise SystemExit(1) from error


def _hint(error: click.UsageError) -> str:
    """Return what the user may have meant by an unknown command, option or argument."""
    names = error.ctx.command.params if error.ctx else ()
    options = {name for parameter in names for name in parameter.opts}
    if isinstance(error, click.NoSuchOption):
        from captioner.config import Config

        name = error.option_name.lstrip("-").replace("-", "_")
        name = SYNONYMS.get(name, name)
        if (option := f"--{name.replace('_', '-')}") in options:
            return f" Did you mean {option}?"
        paths = [
            f"--set {section}.{name}=VALUE"
            for section, field in Config.model_fields.items()
            if name in getattr(field.annotation, "model_fields", ())
        ]
        return f" Did you mean {' or '.join(paths)}?" if paths and "--set" in options else ""
    if command := re.match("No such command '(.*)'", error.message):
        return suggest(command[1], COMMANDS)
    if (extra := re.match(r"Got unexpected extra arguments? \(([^\s)]+)", error.message)) and (
        "--model" in options and "images" not in options
    ):
        return f"; did you mean --model {plain(extra[1])}?"
    return ""


class _Closed(io.StringIO):
    """A stdout that the caller closed, as cron and services do: only its use is an error."""

    def write(self, text: str) -> int:  # noqa: ARG002
        raise OSError(errno.EBADF, "stdout is closed; redirect it to a file")


def _prepare_streams() -> None:
    """Write any character, whatever the locale; survive streams that the caller closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # else the next file that is opened would become stdout
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or _Closed()
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


def _discard_stdout() -> None:
    """Let what stdout still holds go nowhere."""
    with suppress(OSError, ValueError):  # it has no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(text: str) -> None:
    click.echo(message(f"captioner: {text}"), err=True)


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from captioner.system.environment import summary

        click.echo(summary())
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the versions of captioner, torch and torchvision, and the device.",
)
def main() -> None:
    """Caption images: a frozen CNN starts an RNN, and the RNN writes the caption."""
