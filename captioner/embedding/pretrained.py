"""What the pretrained networks share: loading with one line for a failure, names for signatures."""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn

from captioner.errors import ModelError
from captioner.hub import check_reach
from captioner.system.foreign import plain

_ODD = re.compile(r"[^\w.:/+-]")


class UnavailableError(ModelError):
    """A library is not installed, or weights cannot be downloaded: a score is undefined."""


def library(name: str, package: str, extra: str) -> Any:
    """Import a library of an extra.

    Raises:
        UnavailableError: if it is not installed.
    """
    try:
        with _quiet():
            return import_module(name)
    except ImportError as error:
        raise UnavailableError(f"needs {package}: pip install 'captioner[{extra}]'") from error


@contextmanager
def loading(what: str, advice: str, kind: type[ModelError]) -> Iterator[None]:
    """Turn what a library raises while it loads a model into one line, and silence its log.

    Raises:
        ModelError: of this kind.
    """
    try:
        with _quiet():
            yield
    except Exception as error:  # the libraries, their HTTP clients and their readers raise any type
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise kind(f"{what} cannot be loaded: {plain(reason, 160)}; {advice}") from error


def reach(repository: str, what: str, advice: str) -> None:
    """Check that a repository of the Hub is cached or can be reached; the libraries try a minute.

    Raises:
        UnavailableError: if it is neither.
    """
    try:
        with _quiet():
            check_reach(repository)
    except ModelError as error:
        raise UnavailableError(f"{what} cannot be loaded: {error}; {advice}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def signed_name(name: str, network: nn.Module) -> str:
    """Return a name for signatures: without odd characters, and with a digest of the weights."""
    digest = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return f"{_ODD.sub('_', name)}@{digest.hexdigest()[:12]}"
