"""The list of failures beside an output: whole, and shared by the jobs of a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from captioner.captioning.failures import ERRORS, failure_list
from captioner.errors import ConfigError


def listed(folder: Path) -> list[tuple[str, str, str]]:
    lines = (folder / ERRORS).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [(row["output"], row["path"], row["kind"]) for row in rows]


def test_jobs_of_a_folder_that_run_at_once_lose_nothing_of_each_other(tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    with failure_list(one) as add_one:
        add_one("a.jpg", "missing", "no such file")
        with failure_list(two) as add_two:
            add_two("b.jpg", "damaged", "broken")
        assert listed(tmp_path) == [("two.jsonl", "b.jpg", "damaged")]
    assert [row[0] for row in listed(tmp_path)] == ["one.jsonl", "two.jsonl"]
    with failure_list(one):
        pass
    assert [row[0] for row in listed(tmp_path)] == ["two.jsonl"]
    with failure_list(two):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_breaks_off_leaves_the_list_as_it_was(tmp_path):
    output = tmp_path / "out.jsonl"
    with failure_list(output) as add:
        add("a.jpg", "missing", "no such file")
    before = (tmp_path / ERRORS).read_bytes()
    with pytest.raises(KeyboardInterrupt), failure_list(output) as add:
        add("b.jpg", "missing", "no such file")
        raise KeyboardInterrupt
    assert (tmp_path / ERRORS).read_bytes() == before


def test_a_list_that_cannot_be_read_is_said_before_the_work(tmp_path):
    (tmp_path / ERRORS).mkdir()
    with pytest.raises(ConfigError, match="a folder"), failure_list(tmp_path / "out.jsonl"):
        pytest.fail("began")
