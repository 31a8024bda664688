"""Trials of a plug-in's cell: the form of its results, and the rules that other code relies on."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from captioner.config import DecoderConfig

CAPTIONS, WORDS = 2, 3


def check_form(cell: nn.Module, config: DecoderConfig) -> None:
    """Call a cell, whatever its weights are, and look at its results.

    Raises:
        TypeError: if they are not two tensors, (outputs, hidden), in float32.
        ValueError: if they have other shapes.
    """
    state = (config.num_layers, CAPTIONS, config.hidden_size)
    with torch.no_grad():
        results = cell(torch.zeros(CAPTIONS, WORDS, config.embed_size), torch.zeros(state))
    wish = "forward must return two tensors (outputs, hidden)"
    if not isinstance(results, tuple):
        raise TypeError(f"{wish}, not {type(results).__name__}")
    if len(results) != 2 or not all(isinstance(each, Tensor) for each in results):
        kinds = ", ".join(type(each).__name__ for each in results)
        raise TypeError(f"{wish}, not ({kinds})")
    found = tuple(tuple(each.shape) for each in results)
    if found != (wanted := ((CAPTIONS, WORDS, config.hidden_size), state)):
        shapes = " and ".join(map(str, found))
        raise ValueError(f"outputs and hidden have shapes {shapes}, not {wanted}")
    if others := {each.dtype for each in results} - {torch.float32}:
        raise TypeError(f"outputs and hidden must have the dtype of inputs, not {others.pop()}")


def check_rules(cell: nn.Module, config: DecoderConfig) -> None:
    """Compare words in one call with words one by one, and captions together with each alone.

    The global random numbers stay as they are.

    Raises:
        ValueError: if the results differ, or no gradient reaches the initial state.
    """
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(CAPTIONS, WORDS, config.embed_size, generator=generator)
    state = torch.randn(config.num_layers, CAPTIONS, config.hidden_size, generator=generator)
    outputs, hidden = cell(words, state.requires_grad_())
    each, last = [], state
    for word in words.split(1, dim=1):
        output, last = cell(word, last)
        each.append(output)
    close = partial(torch.allclose, rtol=1e-3, atol=1e-4)
    if not (close(torch.cat(each, 1), outputs) and close(last, hidden)):
        raise ValueError(
            f"{WORDS} words in one call and in {WORDS} calls differ; the state must hold all"
        )
    pairs = zip(words.split(1), state.split(1, dim=1), strict=True)
    alone, ends = zip(*(cell(row, start.contiguous()) for row, start in pairs), strict=True)
    if not (close(torch.cat(alone), outputs) and close(torch.cat(ends, 1), hidden)):
        raise ValueError(
            f"{CAPTIONS} captions together and each alone differ; rows must be independent"
        )
    (gradient,) = (
        torch.autograd.grad(outputs.sum(), state, allow_unused=True)
        if outputs.requires_grad
        else (None,)
    )
    if gradient is None:
        raise ValueError("no gradient from outputs reaches hidden, which holds the image")
