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
VERBS = (
    "captioning",
    "training",
    "evaluation",
    "scoring",
    "doctor",
    "explaining",
    "exporting",
    "inspection",
)
LAYERS = (
    ("system",),
    ("text", "config", "images", "hub"),
    ("search", "metrics", "page"),
    ("encoder", "embedding"),
    ("decoder",),
    ("data", "model_config", "steering", "explanation"),
    ("model_dir", "pipeline"),
    ("captioner",),
    ("run_dir",),
    ("model_list", "model_card"),
    VERBS,
    ("gradients", "serving"),  # the one trains, the other writes captions out
    ("cli",),
    ("__main__",),
    ("__init__",),  # the public names, which nothing inside imports
)
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
SERVED_BY = {"compare": "scoring", "evaluate": "evaluation", "score": "scoring"}
SERVED_BY["metric_options"] = "scoring"  # of score and compare
SERVED_BY |= {verb: verb for verb in ("doctor", "gradients")}
SERVED_BY |= {
    "caption": "captioning",
    "data": "inspection",
    "explain": "explaining",
    "export": "exporting",
    "serve": "serving",
    "merge": "captioning",
    "status": "captioning",
    "train": "training",
}
SERVED_BY |= dict.fromkeys(("dry_run", "messages", "wording_options"), "captioning")  # its parts
FILES = sorted(ROOT.rglob("*.py"))


def room_of(module: str) -> str:
    """`captioner.encoder.folding` -> `encoder`; the package itself is `__init__`."""
    parts = module.split(".")
    known = len(parts) > 1 and ((ROOT / parts[1]).is_dir() or (ROOT / f"{parts[1]}.py").exists())
    room = parts[1] if known else "__init__"
    return "system" if room == "errors" else room  # what the machine refuses is an error, too


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
    return "__init__" if path == ROOT / "__init__.py" else room_of(module_of(path))


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
    assert rooms >= {"system", "config", "encoder", "data", "training", "captioning", "cli"}


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
        ("encoder", "from captioner.data import dataset", 1),
        ("encoder", "import captioner.data.dataset", 1),
        ("encoder", "from captioner import data", 1),
        ("decoder", "def f():\n    from captioner.data.feature_store import FeatureStore", 1),
        ("model_dir", "if TYPE_CHECKING:\n    import captioner.training.loop", 1),
        ("images", "from captioner.text import tokenize", 1),
        ("captioning", "from captioner.training.loop import Trainer", 1),
        ("encoder", "from captioner.encoder import weights", 0),
        ("encoder", "from captioner.config import Config", 0),
        ("system", "from captioner.errors import ImageError", 0),
        ("encoder", "from captioner import __version__", 1),
        ("encoder", "from captioner.system.version import __version__", 0),
        ("gradients", "from captioner.training import bptt", 0),
        ("serving", "from captioner.captioning.wording import sentence", 0),
        ("captioning", "from captioner.serving.app import build_app", 1),
    ],
)
def test_the_proof_itself(room: str, source: str, found: int) -> None:
    assert len(forbidden(room, ast.parse(source))) == found


@pytest.mark.parametrize("room", ["search", "metrics"])
def test_search_and_metrics_know_no_networks_and_no_pictures(room: str) -> None:
    unknown = {"torch.nn", "torchvision", "PIL"} | ({"torch"} if room == "metrics" else set())
    for path in files_of(room):
        tree = parse(path)
        known = set().union(*map(roots, imported(tree)))
        known |= {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not known & unknown, path


@pytest.mark.parametrize("path", files_of("cli"), ids=lambda path: path.stem)
def test_a_command_calls_the_room_of_its_verb(path: Path) -> None:
    verbs = {room_of(name) for name in imported(parse(path))} & {*VERBS, "gradients", "serving"}
    assert verbs <= {SERVED_BY.get(path.stem)}


def test_no_two_files_have_one_name() -> None:
    names = [p.stem for p in FILES if own_room(p) != "cli" and not p.stem.startswith("__")]
    assert sorted(names) == sorted(set(names))


def test_the_command_line_imports_nothing_heavy_at_module_level() -> None:
    light = set(sys.stdlib_module_names) | {"click"}
    for path in files_of("cli"):
        tree = parse(path)
        tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        for name in imported(tree):
            package = name.split(".")[0]
            assert package in light or room_of(name) in ("cli", "system"), f"{path}: {name}"
            assert package in light | {"captioner"}, f"{path}: {name}"


HELP = """
import contextlib, io, json, sys
from captioner.cli import COMMANDS, main
for arguments in (["--help"], *([verb, "--help"] for verb in COMMANDS)):
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


ALL = """
import importlib, json, pkgutil, sys
import captioner
for module in pkgutil.walk_packages(captioner.__path__, "captioner."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(json.dumps(sorted(sys.modules)))
"""


def test_torchvision_is_imported_only_to_build_a_cnn() -> None:
    done = subprocess.run([sys.executable, "-c", ALL], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert {"torch", "captioner.encoder.encoder"} <= loaded
    assert "torchvision" not in loaded
