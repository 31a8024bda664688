"""Imports go strictly downward, and asking for help costs nothing. Proved from the source."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import captioner

ROOT = Path(captioner.__file__).parent
LOWEST = (("version", "foreign", "escapes"), ("errors",), ("ownership",), ("files",))
LAYERS = (
    *LOWEST,
    ("config", "images", "text", "recurrence", "search", "metrics", "world", "workers", "batches"),
    ("memory",),
    ("datasets", "models"),
    ("features",),
    ("stores", "run_dir"),
    ("training", "inference"),
    ("evaluation", "gradients"),
    ("cli",),
    ("__main__",),
    ("__init__",),  # the public names, which nothing inside imports
)
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
FILES = sorted(ROOT.rglob("*.py"))


def room_of(module: str) -> str:
    """`captioner.models.encoder` -> `models`; the package itself is `__init__`."""
    parts = module.split(".")
    known = len(parts) > 1 and ((ROOT / parts[1]).is_dir() or (ROOT / f"{parts[1]}.py").exists())
    return parts[1] if known else "__init__"


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that a piece of source imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they lead"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def forbidden(room: str, tree: ast.AST) -> list[str]:
    """What a file of a room imports from its own height or above."""
    modules = [name for name in imported(tree) if name.split(".")[0] == "captioner"]
    return [
        name for name in modules if room_of(name) != room and LAYER[room_of(name)] >= LAYER[room]
    ]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def own_room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def files_of(room: str) -> list[Path]:
    found = [path for path in FILES if own_room(path) == room]
    assert found
    return found


def roots(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[:length]) for length in range(1, len(parts) + 1)}


def test_every_room_is_in_the_plan() -> None:
    rooms = {own_room(path) for path in FILES}
    assert rooms <= LAYER.keys(), "a new room needs a layer"
    assert rooms >= {"errors", "config", "models", "features", "training", "inference", "cli"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_strictly_downward(path: Path) -> None:
    tree = parse(path)
    assert forbidden(own_room(path), tree) == []


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Return the modules that import one another, directly or by way of others.

    Modules that nobody left imports, or that import nobody left, are in no circle.
    """
    left = dict(imports)
    while True:
        wanted = set().union(*left.values(), ())
        kept = {name: to & left.keys() for name, to in left.items() if name in wanted}
        kept = {name: to & kept.keys() for name, to in kept.items() if to & kept.keys()}
        if kept == left:
            return sorted(left)
        left = kept


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


def test_no_files_import_one_another_in_a_circle() -> None:
    modules = {module_of(path): path for path in FILES}

    def file_of(name: str) -> str:
        while name not in modules:
            name = name.rpartition(".")[0]
        return name

    imports = {
        module: {file_of(name) for name in imported(parse(path)) if name.startswith("captioner.")}
        - {module}
        for module, path in modules.items()
    }
    assert sum(map(len, imports.values())) > len(modules)
    assert circle(imports) == []


def test_the_proof_of_circles() -> None:
    line = {"a": {"b"}, "b": {"c"}, "c": set[str]()}
    assert circle(line) == []
    assert circle(line | {"c": {"b"}, "d": {"a"}}) == ["b", "c"]


@pytest.mark.parametrize(
    ("room", "source", "found"),
    [
        ("models", "from captioner.datasets import base", 1),
        ("models", "import captioner.datasets.base", 1),
        ("models", "from captioner import datasets", 1),
        ("models", "def f():\n    from captioner.features import FeatureStore", 1),
        ("models", "if TYPE_CHECKING:\n    import captioner.training.loop", 1),
        ("images", "from captioner.text import tokenize", 1),
        ("inference", "from captioner.training.loop import Trainer", 1),
        ("models", "from captioner.models import weights", 0),
        ("models", "from captioner.config import Config", 0),
        ("models", "from captioner import __version__", 1),
        ("models", "from captioner.version import __version__", 0),
        ("evaluation", "from captioner.training import prepare", 0),
    ],
)
def test_the_proof_itself(room: str, source: str, found: int) -> None:
    assert len(forbidden(room, ast.parse(source))) == found


@pytest.mark.parametrize("room", ["search", "metrics"])
def test_search_and_metrics_know_no_networks_and_no_pictures(room: str) -> None:
    unknown = {"torch.nn", "torchvision", "PIL", "captioner.images", "captioner.datasets"}
    unknown |= {"captioner.models", "captioner.features"} | (
        {"torch"} if room == "metrics" else set()
    )
    for path in files_of(room):
        tree = parse(path)
        known = set().union(*map(roots, imported(tree)))
        known |= {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not known & unknown, path


def test_models_know_no_data_sets() -> None:
    for path in files_of("models"):
        assert "datasets" not in {room_of(name) for name in imported(parse(path))}


def test_the_command_line_imports_nothing_heavy_at_module_level() -> None:
    light = set(sys.stdlib_module_names) | {"click"}
    lowest = sum(LOWEST, ())
    for path in files_of("cli"):
        tree = parse(path)
        tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        for name in imported(tree):
            package = name.split(".")[0]
            assert package in light or room_of(name) in ("cli", *lowest), f"{path}: {name}"
            assert package in light | {"captioner"}, f"{path}: {name}"


HELP = """
import contextlib, io, json, sys
from captioner.cli import COMMANDS, main
for arguments in (["--help"], ["--version"], *([verb, "--help"] for verb in COMMANDS)):
    with contextlib.redirect_stdout(io.StringIO()) as output:
        main.main(arguments, standalone_mode=False)
    assert output.getvalue()
print(json.dumps(sorted(sys.modules)))
"""


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert "click" in loaded
    heavy = {"torch", "torchvision", "pydantic", "nltk", "numpy", "PIL", "yaml", "matplotlib"}
    assert not loaded & heavy
