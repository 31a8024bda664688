"""Options and helpers that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from captioner.errors import ConfigError
from captioner.system.addresses import is_address
from captioner.system.foreign import message, printable

if TYPE_CHECKING:
    from captioner.config import Config

SLASH = "\0"  # a file name that stands for the end of a path that ends with a slash


class OutputPath(click.Path):
    """A path; an address in object storage stays a text, and a slash at the end a `SLASH`."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        """Return a `Path`, or the address."""
        if isinstance(value, str) and is_address(value):
            return value
        if isinstance(value, str) and value.endswith("/") and not Path(value).is_dir():
            return Path(value, SLASH)
        return super().convert(value, param, ctx)


config_argument = click.argument("config", required=False)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="K=V",
    help="Override a setting, as section.key=value.",
)
device_option = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps."
)
_MODEL = (
    "Model or run directory; a bundled model, photos or scenes; or hub:OWNER/NAME[@REVISION], on "
    "the Hugging Face Hub"
)
_DEFAULT = "[default: $CAPTIONER_MODEL, else the newest run under runs/, else photos]"
model_option = click.option(
    "--model",
    type=click.Path(path_type=Path),
    help=f"{_MODEL}.  {_DEFAULT}",
)
models_option = click.option(
    "--model",
    "models",
    multiple=True,
    type=click.Path(path_type=Path),
    help=f"{_MODEL}. Repeat to average the predictions of several models.  {_DEFAULT}",
)
_DECODING = {
    "--search": (
        click.Choice(["beam", "sample"]),
        "beam: the most probable captions; sample: captions drawn at random.",
    ),
    "--beam-size": (int, "Hypotheses kept per image; 1 is greedy."),
    "--length-penalty": (float, "Exponent a of score = log-probability / length^a."),
    "--max-length": (int, "Most tokens in a caption, including the end token."),
    "--min-length": (int, "Fewest words in a caption."),
    "--start": (str, 'First words of every caption, such as "a photo of".'),
    "--forbid": (str, "Word that no caption may hold; @FILE: one word a line. Repeatable."),
    "--no-repeat-ngram-size": (int, "Never repeat an n-gram of this size; 0: allow repeats."),
    "--repeat-penalty": (float, "Cost of each earlier use of a word in the caption; 0: off."),
    "--neighbours": (float, "Weight of the captions of similar training images; 0: off."),
    "--precision": (str, "Precision of the decoder's matrix products: auto, fp32, bf16 or fp16."),
    "--temperature": (float, "Sampling: below 1 sharpens the distribution, above 1 flattens it."),
    "--top-k": (int, "Sampling: only the k most probable words; 0: all."),
    "--top-p": (float, "Sampling: only the fewest words whose probabilities reach this sum."),
    "--seed": (int, "Sampling: random seed."),
}


def decoding_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the search options; the command receives those given as `decoding`."""

    @wraps(command)
    def collected(**options: Any) -> None:
        names = [flag[2:].replace("-", "_") for flag in _DECODING]
        values = {name: options.pop(name) for name in names}
        given = {name: value for name, value in values.items() if value is not None}
        command(decoding=given, **options)

    for flag, (kind, text) in reversed(_DECODING.items()):
        read = {"--forbid": _forbidden}.get(flag)
        option = click.option(flag, type=kind, help=text, multiple=bool(read), callback=read)
        collected = option(collected)
    return collected


def read_bytes(_: click.Context, option: click.Parameter, size: str | None) -> int | None:
    """Return the bytes of an option such as 2G."""
    from captioner.system.memory import bytes_of

    try:
        return None if size is None else bytes_of(size)
    except ConfigError as error:
        raise ConfigError(f"{option.opts[0]}: {error}") from error


def _forbidden(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> list[str] | None:
    """Return the words of `--forbid`, read from files where they begin with `@`; None: not given.

    An empty text is no word, so that `--forbid ""` forbids none.
    """
    from captioner.system.text_files import read_lines

    files = {word: read_lines(Path(word[1:])) for word in given if word.startswith("@")}
    words = [line.strip() for word in given for line in files.get(word, [word])]
    return [*filter(None, words)] if given else None


def choose_config(config: str | None, overrides: tuple[str, ...]) -> str:
    """Return the configuration of a command whose CONFIG may be missing; say which, and why."""
    from captioner.config import root_of

    root = root_of(overrides)
    if config or root is None:
        return config or usual_config(root)
    config = usual_config(root)
    if config == "scenes":
        say("note: takes the configuration scenes: data.root holds drawn scenes")
    else:
        say(
            "note: takes the configuration photos, as data.root holds no drawn scenes; "
            "CONFIG --set data.root=PATH takes another"
        )
    return config


def load_settings(config: str | None, overrides: tuple[str, ...]) -> Config:
    """Return the configuration of a command; see `choose_config` and `with_stream_kept`."""
    from captioner.config import load_config

    return with_stream_kept(load_config(choose_config(config, overrides), overrides), overrides)


def with_stream_kept(config: Config, overrides: tuple[str, ...], data: str | None = None) -> Config:
    """Return the config with kept shards instead of a `pipe:COMMAND` that the user typed.

    The command stands in `--set data.root=` or is `data`. A config of a file starts no command.
    """
    from captioner.config import root_of
    from captioner.data.streams import is_stream, keep

    typed = root_of(overrides) or data
    if typed is None or not is_stream(typed) or config.data.root != typed:
        return config
    kept = config.data.model_copy(update={"root": str(keep(typed, say))})
    return config.model_copy(update={"data": kept})


def usual_config(root: str | None) -> str:
    """Return the configuration for a `data.root`; None stands for the bundled scenes."""
    from captioner.config import holds_scenes

    return "scenes" if root is None or holds_scenes(root) else "photos"


def name_of_results(config: str | None, overrides: tuple[str, ...]) -> str:
    """Return a name for a folder of results: that of CONFIG, or else that of the data."""
    from captioner.config import resolve_path, root_of
    from captioner.data.streams import is_stream
    from captioner.hub import is_hub_data, parse_data

    root = root_of(overrides)
    if config or root is None:
        return Path(config or "scenes").stem
    if is_hub_data(root):
        return parse_data(root).repository.partition("/")[2]
    if is_stream(root):
        return "stream"
    place = os.path.abspath(resolve_path(root))  # noqa: PTH100 "." has a name too
    is_file = os.path.isfile(place)  # noqa: PTH113 pathlib raises for a name that is too long
    return (Path(place).stem if is_file else Path(place).name) or "photos"


def leads() -> bool:
    """Return whether this process speaks: alone, or the first of those of `torchrun`."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Print a status line to stderr, printable and of bounded length."""
    click.echo(message(text), err=True)


def show(text: str = "") -> None:
    """Print a result to stdout, printable."""
    click.echo(printable(text))
