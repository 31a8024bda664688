"""No function is longer than a screen, and a command parses, calls one function and prints."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import captioner

ROOT = Path(captioner.__file__).parent
MOST, MOST_OF_A_COMMAND = 60, 25  # lines

EXCEPTIONS = {
    "captioning/ray.py:caption_with_ray",  # half of the lines are its arguments
    "search/beam.py:beam_search",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions() -> Iterator[tuple[str, Function]]:
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, Function):
                yield f"{path.relative_to(ROOT).as_posix()}:{node.name}", node


def length(function: Function) -> int:
    return (function.end_lineno or 0) - function.lineno + 1


def body_length(function: Function) -> int:
    first = function.body[0]
    before = (first.end_lineno or 0) if ast.get_docstring(function) else first.lineno - 1
    return (function.end_lineno or 0) - before


def is_command(function: Function) -> bool:
    return any(
        ast.unparse(each).startswith(("click.command", "click.group"))
        for each in function.decorator_list
    )


def test_a_function_is_no_longer_than_a_screen() -> None:
    long = {
        name
        for name, function in functions()
        if not is_command(function) and length(function) > MOST
    }
    assert long == EXCEPTIONS


def test_a_command_parses_calls_and_prints() -> None:
    commands = [(name, function) for name, function in functions() if is_command(function)]
    assert len(commands) > 5
    long = {name for name, function in commands if body_length(function) > MOST_OF_A_COMMAND}
    assert long == set()


@pytest.mark.parametrize(("lines", "found"), [(58, 60), (59, 61)])
def test_the_proof_itself(lines: int, found: int) -> None:
    source = 'def f():\n    "Say."\n' + "    x = 1\n" * lines
    [function] = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    assert (length(function), body_length(function)) == (found, lines)
