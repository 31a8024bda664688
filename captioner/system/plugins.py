"""Plug-ins: what installed packages add to captioner's tables, by entry points.

Only an entry point of one of the five groups is ever imported, and only when its name is used.
Built-in names win, so a table looks here for the names that it does not have.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, lru_cache
from importlib import metadata
from typing import Any, Literal, NamedTuple

from captioner.errors import CaptionerError, ConfigError, PlugInError, is_shortage
from captioner.system.foreign import excerpt, plain

Kind = Literal["cells", "metrics", "datasets", "writers", "backbones"]
KINDS: dict[Kind, str] = {
    "cells": "cell",
    "metrics": "metric",
    "datasets": "data format",
    "writers": "output format",
    "backbones": "backbone",
}
NAME = r"[a-z][a-z0-9_]{0,39}"  # of what a plug-in adds
PACKAGE = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?"
VERSION = r"[A-Za-z0-9][A-Za-z0-9.+!_-]{0,59}"


class PlugIn(NamedTuple):
    """One thing that an installed package adds."""

    kind: Kind
    name: str
    package: str
    version: str
    point: metadata.EntryPoint

    def __str__(self) -> str:
        return f"plug-in {self.name} of {self.package} {self.version}"

    @property
    def label(self) -> str:
        """Package and version, as in signatures."""
        return f"{self.package}-{self.version}"


def plugins(kind: Kind | None = None) -> list[PlugIn]:
    """Return what installed packages add, of one kind or of all; imports none of them."""
    return [each for each in _found(tuple(sys.path)) if kind in (None, each.kind)]


def names(kind: Kind) -> list[str]:
    """Return the names that installed packages add to a table."""
    return sorted({each.name for each in plugins(kind)})


@lru_cache(4)
def _found(path: tuple[str, ...]) -> tuple[PlugIn, ...]:  # noqa: ARG001 the key of the cache
    return tuple(
        PlugIn(kind, point.name, package, version, point)
        for package, version, points in _packages()
        for kind in KINDS
        for point in points.select(group=f"captioner.{kind}")
        if re.fullmatch(NAME, point.name)
    )


def ignored() -> list[tuple[str, str, str]]:
    """Return what installed packages add in vain: group and name, package, and the reason."""
    groups = [f"captioner.{kind}" for kind in KINDS]
    found = []
    for package, version, points in _packages():
        for point in points:
            reason = None
            if point.group.startswith("captioner.") and point.group not in groups:
                reason = f"the groups are {', '.join(groups)}"
            elif point.group in groups and not re.fullmatch(NAME, point.name):
                reason = "a name has small letters, digits and _, and starts with a letter"
            if reason:
                what = plain(f"{point.group} {point.name}")
                found.append((what[:80], f"{package}-{version}", reason))
    return found


def _packages() -> Iterator[tuple[str, str, metadata.EntryPoints]]:
    """Yield name, version and entry points of the packages that have any for captioner."""
    seen: set[str] = set()
    for package in metadata.distributions():
        try:
            if "captioner." not in (package.read_text("entry_points.txt") or ""):
                continue  # reading all names would take a third of a second
            title, version, points = package.name, package.version, package.entry_points
            fits = isinstance(title, str) and re.fullmatch(PACKAGE, title)
            if not fits or not re.fullmatch(VERSION, version or "") or normal(title) in seen:
                continue
            first = metadata.distribution(title)  # of this name on Python's path
            if (first.version, [*first.entry_points]) != (version, [*points]):
                continue
        except Exception:  # a damaged installation
            continue
        seen.add(normal(title))
        yield title, version, points


def normal(package: str) -> str:
    """Return the name of a package as installers compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", package).lower()


def plugin(kind: Kind, name: str) -> PlugIn | None:
    """Return what a package adds by this name, without importing it; None if there is none.

    Raises:
        ConfigError: if two packages add it.
    """
    found = _called(kind, name)
    packages = [*dict.fromkeys(each.label for each in found)]
    if len(packages) > 1:
        raise ConfigError(
            f"{' and '.join(packages)} add the {KINDS[kind]} {name}; uninstall all but one of them"
        )
    if len(found) > 1:
        raise ConfigError(f"{packages[0]} adds the {KINDS[kind]} {name} twice; uninstall it")
    return found[0] if found else None


def _called(kind: Kind, name: str) -> list[PlugIn]:
    return [each for each in plugins(kind) if each.name == name]


def tell_unused(kind: Kind, name: str) -> None:
    """Say once, on stderr, that a built-in name is used and is not the plug-in's of that name."""
    if found := _called(kind, name):
        packages = " and ".join(dict.fromkeys(each.label for each in found))
        whose, advice = "captioner's own", "its author can give it another name"
        if kind == "backbones":
            whose, advice = "torchvision's", f"that is plugin:{name}"
        _say_once(
            f"note: the {KINDS[kind]} {name} is {whose}, not the plug-in's of {packages}; {advice}"
        )


@cache
def _say_once(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # the first of the processes of torchrun speaks
        print(text, file=sys.stderr)


def load(kind: Kind, name: str, must_be: type | tuple[str, ...] | None = None) -> Any:
    """Import what a package adds by this name.

    Args:
        kind: the table.
        name: in this table, none of captioner's own.
        must_be: class that it must be a subclass of, or what it must define; None: anything that
            can be called.

    Raises:
        ConfigError: if no installed package adds it, or its import fails, or it is something else.
    """
    found = plugin(kind, name)
    if found is None:
        raise ConfigError(f"no installed package adds the {KINDS[kind]} {excerpt(name, 60)}")
    with guarded(found, ConfigError):
        thing = found.point.load()
    if must_be is None:
        fits, wanted = callable(thing), "a class or function"
    elif isinstance(must_be, tuple):
        fits = all(hasattr(thing, each) for each in must_be)
        wanted = f"a module with {', '.join(must_be)}"
    else:
        fits = isinstance(thing, type) and issubclass(thing, must_be)
        wanted = f"a subclass of captioner's {must_be.__name__}"
    if not fits:
        given = excerpt(thing, 60)
        raise ConfigError(f"{found}: {found.point.value} must be {wanted}, is {given}")
    return thing


def blamed(kind: Kind, name: str | None) -> AbstractContextManager[None]:
    """Return what makes an exception a `PlugInError` that names the plug-in; None: no plug-in."""
    who = plugin(kind, name) if name else None
    return guarded(who, PlugInError) if who else nullcontext()


@contextmanager
def guarded(who: PlugIn, error: type[CaptionerError], *let_pass: type[Exception]) -> Iterator[None]:
    """Turn an exception in a plug-in's code into one line that names its package.

    Raises:
        CaptionerError: of the type `error`.
    """
    try:
        yield
    except (Exception, SystemExit) as cause:
        if isinstance(cause, (CaptionerError, *let_pass)) or is_shortage(cause):
            raise
        raise error(f"{who} fails: {type(cause).__name__}: {plain(cause)}") from cause
