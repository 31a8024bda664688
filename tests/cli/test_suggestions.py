"""Messages name the option that the user typed, and no suggestion deletes anything."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from captioner.cli import COMMANDS, main
from captioner.config import load_config
from captioner.data.prepare import open_encoder
from captioner.errors import DESTRUCTIVE, ModelError

import toys


def run(*words: str) -> str:
    result = CliRunner().invoke(main, list(words))
    assert result.exit_code in (1, 2)
    assert not result.exception or isinstance(result.exception, SystemExit)
    return result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_no_suggestion_deletes_or_replaces(command: str) -> None:
    group = main.get_command(click.Context(main), command)
    assert group
    names = [name for option in group.params for name in option.opts if name.startswith("--")]
    slips = [name[:place] + name[place + 1 :] for name in names for place in range(3, len(name))]
    suggested = set()
    for slip in (*slips, "--verbose", "--force", "--override", "--rewrite", "--clean", "--purge"):
        said = run(command, slip, "x")
        suggested |= set(re.findall(r"--[a-z-]+", said.rpartition(slip)[2])) - {slip}
    assert not suggested & {f"--{name}" for name in DESTRUCTIVE}
    others = {
        "--device",
        "--seed",
        "--revision",
        "--images",
        "--json",
        "--pictures",
        "--output",
    }  # are
    assert not names or suggested & others


def test_what_was_meant_is_suggested() -> None:
    for words, hint in (
        ("capton", "did you mean caption?"),
        ("train --epochs 3", "Did you mean --set training.epochs=VALUE?"),
        ("train --lr 0.1", "Did you mean --set training.learning_rate=VALUE?"),
        ("train --batch-size 3", "encoder.batch_size=VALUE or --set training.batch_size=VALUE?"),
        ("evaluate RUN", "did you mean --model RUN?"),
        ("doctor RUN", "did you mean --model RUN?"),
        ("caption x --num-beams 3", "Did you mean --beam-size?"),
        ("caption x --max-memory 2X", "--max-memory: '2X': not a size"),
        ("caption x --extension .cap", "Did you mean --format?"),
        ("caption x --dryrun", "Did you mean '--dry-run'?"),
    ):
        assert hint in run(*words.split())


def test_every_option_that_deletes_or_replaces_is_known() -> None:
    words = re.compile(r"\b(discard|delete|replace|start over)", re.IGNORECASE)
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        for option in command.params if command else ():
            if isinstance(option, click.Option) and words.search(option.help or ""):
                assert option.opts[0].lstrip("-") in DESTRUCTIVE


def test_the_option_that_was_typed_is_named(tmp_path: Path) -> None:
    toys.captioner().save(tmp_path / "m")
    picture = toys.draw(tmp_path / "a.png", "red")
    words = ("caption", str(picture), "--model", str(tmp_path / "m"))
    for typed, named in (
        (("--device", "quantum"), "--device quantum: not available here"),
        (("--device=quantum",), "--device quantum: not available here"),
        (("--beam-size", "0"), "--beam-size: input should be"),
        (("--n-best", "4", "--beam-size", "2"), "--n-best: must be 1 to the beam size (2)"),
        (("--neighbours", "1"), "--neighbours: this model stores no training captions"),
        (("--temperature", "2"), "--temperature: needs decoding.search sample"),
        (("--length-penalty=-1",), "--length-penalty: input should be"),
    ):
        assert f"captioner: error: {named}" in run(*words, *typed)


def test_the_cnn_at_fault_is_named() -> None:
    for setting, value, named in (
        ("backbone", "resnet5", "encoder.cnns.1.backbone: "),
        ("weights", "missing.pth", "encoder.cnns.1.weights: missing.pth is neither"),
        ("builder_args", "{a: 1}", "encoder.cnns.1.builder_args: "),
    ):
        cnns = "[{backbone: squeezenet1_1, weights: none}, {backbone: alexnet, weights: none}]"
        config = load_config(None, [f"encoder.cnns={cnns}", f"encoder.cnns.1.{setting}={value}"])
        with pytest.raises(ModelError) as error:
            open_encoder(config, toys.captioner().device)
        assert str(error.value).startswith(named)
