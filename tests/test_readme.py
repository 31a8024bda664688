"""What the README tells people to type works, and what it shows is there."""

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from captioner.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
EXTRA = re.compile(r"captioner\[([a-z, ]+)\]")


def commands() -> list[list[str]]:
    """Return the words of every captioner command, whatever stands before or after it."""
    text = "\n".join(BLOCKS).replace("&&", "\n").replace("|", "\n")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [words for words in lines if words[:1] == ["captioner"]]


def tree_files() -> set[str]:
    """Return the source files in the tree of docs/architecture.md, by its indentation."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = re.search(r"## The tree\n\n```\n(.*?)```", page, re.DOTALL)
    assert block
    files, folders = set(), {}
    for line in block[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        words = line.partition("#")[0].split()
        if words[0].endswith("/"):
            folders[depth] = words[0]
            continue
        folder = "".join(folders[level] for level in range(depth))
        files |= {f"{folder}{word}.py" for word in words}
    return files


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_is_understood(words, tmp_path, monkeypatch):
    verb, *arguments = words[1:]
    monkeypatch.chdir(tmp_path)
    for word in arguments:  # what the reader would have lying there
        if not word.startswith("-") and "=" not in word:
            Path(word).mkdir(parents=True, exist_ok=True)
    command = main.get_command(click.Context(main), verb)
    assert command is not None
    with command.make_context(verb, arguments) as context:
        assert context.params


def test_the_tree_names_every_source_file_and_no_other():
    files = (ROOT / "captioner").rglob("*.py")
    there = {f.relative_to(ROOT).as_posix() for f in files if f.name != "__init__.py"}
    assert tree_files() == there


def test_the_ways_name_files_and_functions_that_exist():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/.]+)` \| `([^|]+)` \|", page, flags=re.M)
    assert len(rows) > 20
    for name, functions in rows:
        place = ROOT / "captioner" / name
        source = (place / "__init__.py" if place.is_dir() else place).read_text(encoding="utf-8")
        for function in re.findall(r"\w+", functions.replace("Captioner.", "")):
            assert re.search(rf"(def|class) {function}\b", source), f"{name}: {function}"


def test_every_link_leads_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_extra_that_is_advised_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pages = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md"), *ROOT.glob("captioner/**/*.py")]
    # The changelog names extras that went.
    texts = [page.read_text() for page in pages if page.name != "CHANGELOG.md"]
    lists = [found for text in texts for found in EXTRA.findall(text)]
    advised = {extra.strip() for names in lists for extra in names.split(",")}
    assert "ray" in advised
    assert advised <= set(project["optional-dependencies"])


def test_every_file_that_contributing_names_is_there():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:captioner|docs|scripts|tests|benchmarks)/[\w./-]*)", page)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_ci_runs_what_the_readme_promises():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for words in (["captioner", "train"], ["captioner", "caption"], ["captioner", "evaluate"]):
        assert words in [command[:2] for command in commands()]
        assert " ".join(words) in script
    assert "python -m pytest" in script


@pytest.mark.slow
def test_the_main_job_runs_on_the_bundled_default_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CAPTIONER_MODEL", raising=False)
    picture = next((ROOT / "data" / "scenes" / "images").glob("test*.png"))
    for words in (
        ["train", "--set", "training.epochs=1", "--device", "cpu"],
        ["caption", str(picture)],
        ["evaluate"],
    ):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
        if words[0] == "caption":
            assert result.stdout.startswith(f"{picture}\t")
    assert "bleu_4" in result.stdout
    assert "truth" in result.stdout
