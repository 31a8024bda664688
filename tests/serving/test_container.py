"""The container: its Dockerfile and its compose file fit the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import captioner
from captioner.cli import main

ROOT = Path(captioner.__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICE = COMPOSE["services"]["captioner"]


def words(instruction: str) -> list[str]:
    """Return the words of an instruction in JSON form."""
    found = re.search(rf"^{instruction} (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert found
    return [str(word) for word in json.loads(found[1])]


def test_it_starts_the_server_and_needs_a_token() -> None:
    program, *given = words("ENTRYPOINT") + words("CMD")
    assert program == "captioner"
    done = CliRunner().invoke(main, [*given[:-1], "scenes"], env={"CAPTIONER_TOKEN": ""})
    assert done.exit_code == 2
    assert "set --token or $CAPTIONER_TOKEN" in done.stderr


def test_it_is_no_root_and_writes_nothing() -> None:
    users = re.findall(r"^USER (\d+)", DOCKERFILE, re.MULTILINE)
    assert users and users[-1] != "0"
    assert SERVICE["read_only"] is True
    assert SERVICE["tmpfs"] == ["/tmp"]
    assert SERVICE["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in SERVICE["ports"])
    assert ":?" in SERVICE["environment"]["CAPTIONER_TOKEN"]


def test_what_the_wheel_is_built_from_is_there() -> None:
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    names = {line[1:] for line in kept if line.startswith("!")}
    assert kept[0] == "*"
    assert names >= {"captioner", "configs", "data", "models", "pyproject.toml", "README.md"}
    assert all((ROOT / name).exists() for name in names)


def test_hadolint_finds_nothing() -> None:
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    program = shutil.which("hadolint", path=beside)
    if not program:
        pytest.skip("needs hadolint: pip install 'captioner[dev]' on Linux x86_64")
    command = [program, ROOT / "Dockerfile"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
