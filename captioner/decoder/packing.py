"""The neighbours of a small model directory: 8 bits a number, each row with its scale.

A number is its 8 bits times the scale of its image. Votes change by less than 1%, and the tensors
take half the space.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

PAGE = 2**16  # n-grams whose places differ only in their low 16 bits
KINDS = {
    "states": (torch.int8, 2),
    "state_scales": (torch.float16, 1),
    "keys": (torch.int64, 1),
    "idf": (torch.float16, 1),
    "pages": (torch.int32, 2),
    "ngrams": (torch.uint16, 1),
    "weights": (torch.uint8, 1),
    "weight_scales": (torch.float16, 1),
}


def pack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the tensors of `Neighbours.tensors` to the smaller ones of `KINDS`, for `unpack`.

    `ngrams` holds the low 16 bits of each place. `pages` (R, K) counts the entries of each image in
    each page, which gives the high bits back, because an image's entries ascend.
    """
    states, weights = tensors["states"].float(), tensors["weights"].float()
    rows, counts = len(states), tensors["starts"].diff()
    owner = torch.arange(rows).repeat_interleave(counts)
    places = tensors["ngrams"].long()
    order = (owner * max(1, len(tensors["keys"])) + places).argsort()
    weights, places = weights[order], places[order]
    pages = _pages(len(tensors["keys"]))
    entries = (owner * max(1, pages) + places // PAGE).bincount(minlength=rows * pages)
    state_scales = _scales(states.abs().amax(1), 127)
    top = torch.zeros(rows).scatter_reduce(0, owner, weights, "amax")
    weight_scales = _scales(top, 255)
    return {
        "states": _divide(states, state_scales[:, None]).clamp(-127, 127).to(torch.int8),
        "state_scales": state_scales,
        "keys": tensors["keys"],
        "idf": tensors["idf"].half(),
        "pages": entries.view(rows, pages).int(),
        "ngrams": (places % PAGE).to(torch.uint16),
        "weights": _divide(weights, weight_scales[owner]).clamp(0, 255).to(torch.uint8),
        "weight_scales": weight_scales,
    }


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert untrusted tensors of `pack` to those of `Neighbours.read`, which checks them again.

    Raises:
        ValueError: if a tensor is missing, or does not fit the others.
    """
    check_kinds(tensors, KINDS)
    states, pages, ngrams = tensors["states"], tensors["pages"], tensors["ngrams"]
    scales = tensors["state_scales"], tensors["weight_scales"]
    fits = (
        all(len(scale) == len(states) for scale in scales)
        and pages.shape == (len(states), _pages(len(tensors["keys"])))
        and len(ngrams) == len(tensors["weights"])
        and bool((pages >= 0).all())
        and int(pages.sum()) == len(ngrams)
    )
    if not fits:
        raise ValueError("neighbours: its tensors do not fit each other")
    counts = pages.sum(1)
    high = torch.arange(pages.shape[1]).repeat(len(pages)).repeat_interleave(pages.flatten())
    state_scales, weight_scales = (scale.float() for scale in scales)
    weights = tensors["weights"] * weight_scales.repeat_interleave(counts)
    return {
        "states": (tensors["states"] * state_scales[:, None]).half(),
        "keys": tensors["keys"],
        "idf": tensors["idf"].float(),
        "starts": torch.nn.functional.pad(counts.cumsum(0), (1, 0)),
        "ngrams": (high * PAGE + ngrams.long()).int(),
        "weights": weights.half(),
    }


def check_kinds(
    tensors: Mapping[str, Tensor], kinds: Mapping[str, tuple[torch.dtype, int]]
) -> None:
    """Check that all tensors are there, each of its dtype and number of dimensions.

    Raises:
        ValueError: if not.
    """
    for name, (dtype, dims) in kinds.items():
        if name not in tensors:
            raise ValueError(f"neighbours.{name} is missing")
        if tensors[name].dtype != dtype or tensors[name].dim() != dims:
            raise ValueError(f"neighbours.{name} must be a {dims}-dimensional {dtype} tensor")


def _pages(num_ngrams: int) -> int:
    return -(-num_ngrams // PAGE)


def _scales(largest: Tensor, steps: int) -> Tensor:
    """Return what one step of each row is worth, fp16."""
    return (largest / steps).half()


def _divide(numbers: Tensor, scales: Tensor) -> Tensor:
    """Count the steps of each number; 0 where the scale is too small for fp16."""
    return (numbers / scales.float()).nan_to_num(0, 0, 0).round()
