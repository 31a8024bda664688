"""Mutants of a Python source: small changes that a test should notice.

Operators, numbers, strings, truth values and conditions are replaced. Filters, keyword arguments,
slice bounds, return values and statements are removed. Annotations, decorators, docstrings,
assertions and error messages stay.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from os.path import commonprefix
from typing import Any

OPERATORS = {
    **{"Lt": "LtE GtE", "LtE": "Lt Gt", "Gt": "GtE LtE", "GtE": "Gt Lt", "Eq": "NotEq"},
    **{"NotEq": "Eq", "In": "NotIn", "NotIn": "In", "Is": "IsNot", "IsNot": "Is", "And": "Or"},
    **{"Or": "And", "Add": "Sub", "Sub": "Add", "Mult": "Div", "Div": "Mult", "FloorDiv": "Mult"},
    **{"Mod": "Mult", "Pow": "Mult", "BitAnd": "BitOr", "BitOr": "BitAnd", "LShift": "RShift"},
    **{"RShift": "LShift"},
}
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}
CONTEXT, SHOWN = 30, 80  # characters before the change, and in total
UNCHANGED = ("annotation", "returns", "decorator_list", "bases")


def mutants(source: str) -> dict[tuple[str, str], str]:
    """Return the source of each mutant, by function and change."""
    tree, found = ast.parse(source), {}
    for where, holder, key in list(_places(tree)):
        node = holder[key]
        for other in (*_swapped(node), *_without(node)):
            texts = [" ".join(ast.unparse(each).split()) for each in (node, other)]
            if texts[0] == texts[1]:
                continue
            start = max(0, len(commonprefix(texts)) - CONTEXT)  # noqa: RUF071
            before, after = (text[start : start + SHOWN] for text in texts)
            change, count = f"{before} -> {after}", 1
            while (where, change) in found:
                count += 1
                change = f"{before} -> {after} (number {count})"
            holder[key] = other
            found[where, change] = ast.unparse(ast.fix_missing_locations(tree))
            holder[key] = node
    return found


def _places(node: ast.AST, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield function, container and key of each node that runs."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        where = f"{where}.{node.name}".lstrip(".")
    for field, value in ast.iter_fields(node):
        holder = value if isinstance(value, list) else vars(node)
        for key in range(len(value)) if isinstance(value, list) else [field]:
            match holder[key]:
                case ast.Expr(value=ast.Constant()) | ast.JoinedStr() | ast.Assert():
                    pass
                case ast.Subscript(value=ast.Name(id="Literal")):
                    pass
                case ast.AST() as child if field not in UNCHANGED:
                    yield where, holder, key
                    yield from () if isinstance(child, ast.Raise) else _places(child, where)


def _swapped(node: ast.AST) -> Iterator[ast.AST]:
    """Yield replacements of a node."""
    match node:
        case ast.Compare(ops=[operator]):
            yield from (_with(node, ops=[each]) for each in _others(operator))
        case ast.BinOp(op=operator) | ast.BoolOp(op=operator) | ast.AugAssign(op=operator):
            yield from (_with(node, op=each) for each in _others(operator))
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=str(value)) if value:
            yield ast.Constant(value + "X")
        case ast.Name(id=name) if name in CALLS:
            yield ast.Name(CALLS[name])
        case ast.If() | ast.IfExp():
            yield from (_with(node, test=ast.Constant(value)) for value in (True, False))


def _without(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node without one of its elements, or a replacement of the whole node."""
    match node:
        case ast.comprehension(ifs=[_, *_]):
            yield _with(node, ifs=[])
        case ast.Call(keywords=keywords):
            for gone in keywords:
                yield _with(node, keywords=[each for each in keywords if each is not gone])
        case ast.Slice():
            ends = [end for end in ("lower", "upper") if getattr(node, end)]
            yield from (_with(node, **{end: None}) for end in ends)
        case ast.Return(value=ast.expr()):
            yield ast.Return(ast.Constant(None))
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) | ast.AugAssign() | ast.Expr():
            yield ast.Pass()
        case ast.Raise() | ast.Break() | ast.Continue() | ast.Delete():
            yield ast.Pass()


def _with(node: ast.AST, **fields: Any) -> ast.AST:
    other = copy.copy(node)
    vars(other).update(fields)
    return other


def _others(operator: ast.AST) -> list[ast.AST]:
    return [getattr(ast, name)() for name in OPERATORS.get(type(operator).__name__, "").split()]
