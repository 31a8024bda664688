"""No untyped road: options travel as objects, not as `**options: Any` or `dict[str, Any]`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import captioner

ROOT = Path(captioner.__file__).parent
ROADS = ("captioning", "training", "encoder", "decoder", "search", "images", "data", "text")
FILES = [path for room in ROADS for path in sorted((ROOT / room).rglob("*.py"))]
ROOMS = ("captioner", "pipeline", "model_config", "model_dir", "run_dir")
FILES += [ROOT / f"{name}.py" for name in ROOMS]
# Where JSON, YAML or Arrow is read or written: files, and the values that only they describe.
EDGES = {
    "data/formats/huggingface.py",  # rows of Arrow tables
    "data/formats/image_tables.py",  # rows of Arrow tables
    "data/formats/kohya.py",  # metadata.json
    "data/formats/parquet.py",  # rows of Arrow tables
    "encoder/timm_networks.py",  # timm's arguments and preprocessing
    "encoder/weights.py",  # torchvision's builder arguments, as config.json has them
    "model_config.py",  # config.json
    "run_dir.py",  # lines of metrics.jsonl
    "text/vocabulary.py",  # vocab.json
    "training/curves.py",  # lines of metrics.jsonl
}


def untyped(tree: ast.AST) -> list[str]:
    """Return the annotations that say nothing of what travels."""
    found = []
    for node in ast.walk(tree):
        options = node.args.kwarg if isinstance(node, ast.FunctionDef) else None
        if options and options.annotation and ast.unparse(options.annotation) == "Any":
            found.append(f"**{options.arg}: Any")
        if isinstance(node, ast.Subscript) and ast.unparse(node) == "dict[str, Any]":
            found.append(f"line {node.lineno}: dict[str, Any]")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_travels_has_a_type(path: Path) -> None:
    found = untyped(ast.parse(path.read_text(encoding="utf-8")))
    if str(path.relative_to(ROOT)) in EDGES:
        assert found, "no edge any more: take it off the list"
    else:
        assert found == []


def test_the_proof_sees_what_it_looks_for() -> None:
    assert len(untyped(ast.parse("def f(a: dict[str, Any], **b: Any) -> None: ..."))) == 2
    assert untyped(ast.parse("def f(**b: Unpack[Options]) -> dict[str, int]: ...")) == []
