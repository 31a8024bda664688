"""The public surface: what a minor version may add to, and only a major version may take from.

`tests/public_surface.txt` is a snapshot. After a change that is meant, write it again:

    python tests/test_public_surface.py

A line that goes is a change that breaks users: it needs a major version and a line in CHANGELOG.md.
"""

import difflib
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from pydantic import BaseModel

import captioner
from captioner.cli import COMMANDS, main
from captioner.config import Config
from captioner.model_config import ModelConfig
from captioner.system.escapes import COLUMNS
from captioner.system.ownership import MODEL_FILES

SNAPSHOT = Path(__file__).with_name("public_surface.txt")


def surface() -> list[str]:
    """Return a line for each public thing."""
    lines = [f"python: captioner.{name}" for name in captioner.__all__]
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command
        lines.append(f"command: captioner {name}")
        for parameter in command.params:
            words = parameter.opts + parameter.secondary_opts
            if not getattr(parameter, "hidden", False):
                lines += [f"command: captioner {name} {word}" for word in words]
    lines += [f"configuration: {key}" for key in keys(Config)]
    lines += [f"model directory: {name}" for name in MODEL_FILES]
    lines += [f"model directory: config.json: {key}" for key in ModelConfig.model_fields]
    lines += [f"captions: {name}" for name in COLUMNS]
    return sorted(lines)


def keys(section: type[BaseModel], before: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from keys(kind, f"{before}{name}.")
        else:
            yield f"{before}{name}"


def test_the_public_surface_is_the_snapshot() -> None:
    snapshot = SNAPSHOT.read_text(encoding="utf-8").splitlines()
    changes = [line for line in difflib.ndiff(snapshot, surface()) if line[0] in "-+"]
    assert not changes, "see the head of this file:\n" + "\n".join(changes)


def test_the_snapshot_knows_each_kind() -> None:
    kinds = {line.partition(":")[0] for line in surface()}
    assert kinds == {"python", "command", "configuration", "model directory", "captions"}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    SNAPSHOT.write_text("".join(f"{line}\n" for line in surface()), encoding="utf-8")
