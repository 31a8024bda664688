"""What captioner says of itself: versions, man pages, the words that a shell completes."""

import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner

from captioner.cli import COMMANDS, main
from captioner.system import environment
from captioner.system.version import __version__


def run(*words, **variables):
    result = CliRunner().invoke(main, list(words), env=variables, prog_name="captioner")
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_the_version_names_what_computes():
    first, second = run("--version").splitlines()
    assert first == f"captioner {__version__}"
    assert f"torch {version('torch')}, torchvision {version('torchvision')}, device " in second


def test_a_broken_torch_still_has_a_version(monkeypatch):
    monkeypatch.setitem(sys.modules, "captioner.system.devices", None)
    assert f"torch {version('torch')}" in run("--version")
    assert "device none: torch cannot be imported" in run("--version")


def test_a_gpu_is_named(monkeypatch):
    import torch

    monkeypatch.setattr("captioner.system.devices.choose_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA Toy")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert run("--version").endswith("device cuda (NVIDIA Toy, CUDA 13.0)\n")


def test_a_report_has_versions_and_nothing_private(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "somebody"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7\x1b[31m")
    monkeypatch.setenv("HF_TOKEN", "secret")
    rows = dict(re.split(r"\s{2,}", line) for line in run("env").splitlines())
    assert rows["captioner"] == __version__
    assert rows["torch"] == version("torch")
    assert rows["device"] in ("cpu", "mps") or rows["device"].startswith("cuda")
    assert "\x1b" not in rows["$CUDA_VISIBLE_DEVICES"]
    assert "pytest" not in rows, "a tool of developers"
    for private in ("secret", "somebody", str(tmp_path), str(Path.cwd())):
        assert private not in str(rows)


def test_a_package_that_is_absent_is_said(monkeypatch):
    monkeypatch.setattr(environment.metadata, "requires", lambda _: ["no-such-thing>=1"])
    assert "no-such-thing" in run("env")
    assert "not installed" in run("env")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("captioner cap", {"caption"}),
        ("captioner caption --beam", {"--beam-size"}),
        ("captioner completion ", {"bash", "zsh", "fish"}),
        ("captioner nonsense --", set()),
    ],
)
def test_a_shell_completes_commands_options_and_values(words, offered):
    answer = run(
        _CAPTIONER_COMPLETE="bash_complete",
        COMP_WORDS=words,
        COMP_CWORD=str(len(words.split(" ")) - 1),
    )
    assert offered <= {line.partition(",")[2] for line in answer.splitlines()}
    assert bool(answer) == bool(offered) or "--help" in answer


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_one_that_it_can_read(shell, tmp_path):
    script = run("completion", shell)
    assert "_CAPTIONER_COMPLETE" in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)


def test_every_command_has_a_man_page(tmp_path):
    pytest.importorskip("click_man")
    script = Path(__file__).parents[2] / "scripts" / "man.py"
    subprocess.run([sys.executable, str(script), str(tmp_path / "man")], check=True)
    pages = {path.stem: path.read_text() for path in (tmp_path / "man").iterdir()}
    assert set(pages) == {"captioner", *(f"captioner-{name}" for name in COMMANDS)}
    assert all(f"captioner-{name}(1)" in pages["captioner"] for name in COMMANDS)
    assert "\\-\\-beam\\-size" in pages["captioner-caption"]
    if shutil.which("groff"):
        for path in (tmp_path / "man").iterdir():
            words = ["groff", "-man", "-ww", "-Tutf8", "-z", str(path)]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            assert not done.stderr
