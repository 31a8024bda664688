"""Measures gradients through time of one decoder on one batch, without training.

Three questions: how much of the last token's gradient reaches the earlier states, how gates and
recurrent weights affect the gradient, and what truncation after k steps loses.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from captioner.data.caption_table import Batch, CaptionTable, epoch_order, iterate
from captioner.decoder.decoder import Decoder
from captioner.decoder.unrolled import unroll
from captioner.errors import ConfigError
from captioner.text import Vocabulary
from captioner.training import bptt

VANISHED, EXPLODED = 0.01, 100.0  # of the gradient at the last state


@dataclass(frozen=True, slots=True)
class Flow:
    """Gradient norms of the last token's loss, relative to the norm at the caption's last state.

    The index of a list is the distance: steps before the state that scores the last token. The
    lists end at the median length of the captions.
    """

    last: float  # absolute norm at the last state, in nats, median over the captions
    low: list[float]  # tenth percentile over the captions
    median: list[float]
    high: list[float]  # ninetieth percentile
    parts: dict[str, list[float]]  # medians of an LSTM's h and c alone; empty for other cells
    image: float  # norm at the initial state, median over the captions
    image_distance: int  # median length of a caption, end token included
    factor: float  # geometric mean of the ratio of the medians at successive distances
    vanishes: int | None  # first distance below `VANISHED`
    explodes: int | None  # first distance above `EXPLODED`


@dataclass(frozen=True, slots=True)
class Cut:
    """The cosine of a truncated and the full gradient: of the `recurrent` cell and the `image`."""

    window: int  # tokens
    cosine: dict[str, float]


def join_captions(table: CaptionTable, length: int) -> CaptionTable:
    """Join successive captions to sequences of `length` tokens to predict; cut off the rest.

    A sequence has the image of its first caption. Captions of the same image are adjacent.

    Raises:
        ConfigError: if all captions together are shorter.
    """
    sequences: list[Tensor] = []
    firsts: list[int] = []
    pieces: list[Tensor] = []
    first = joined = 0
    for i, tokens in enumerate(table.lengths.tolist()):
        pieces.append(table.token_ids[i, :tokens])
        joined += tokens
        if joined > length:
            sequences.append(torch.cat(pieces)[: length + 1])
            firsts.append(first)
            pieces, joined, first = [], 0, i + 1
    if not sequences:
        raise ConfigError(
            f"--length {length}: all training captions together have only {joined} tokens"
        )
    return replace(
        table,
        token_ids=torch.stack(sequences),
        lengths=torch.full((len(sequences),), length + 1),
        rows=table.rows[firsts],
    )


def longest_batch(table: CaptionTable, batch_size: int, *, seed: int) -> Batch:
    """Return the batch of the first epoch with the longest shortest caption."""
    batches = epoch_order(table.lengths, batch_size, seed=seed, epoch=0)
    sizes = [(len(chosen), int(table.lengths[chosen].min())) for chosen in batches]
    start = sizes.index(max(sizes))
    return next(iterate(table, batch_size, seed=seed, epoch=0, start=start))


def state_gradients(decoder: Decoder, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
    """Differentiate the loss of each caption's last token by every earlier state.

    Runs step by step in float64 on the CPU, without dropout. Does not change the decoder.

    Returns:
        float64 (T + 1, S, B, H): [0] for the initial state, [t] for the state after t tokens; zero
        after a caption's end. S is L, or 2L for an LSTM.
    """
    lengths = caption_lengths(batch)
    states, logits = unroll(decoder, batch.features, batch.inputs, lengths)
    loss = functional.cross_entropy(
        logits,
        batch.targets.cpu()[torch.arange(len(lengths)), lengths - 1],
        reduction="sum",  # captions do not share states
        label_smoothing=label_smoothing,
    )
    with decoder.blamed():
        return torch.stack(torch.autograd.grad(loss, states))


def caption_lengths(batch: Batch) -> Tensor:
    """Return the number of targets of each caption, int64 (B,), on the CPU."""
    return (batch.targets != Vocabulary.pad_id).sum(1).cpu()


def measure_flow(decoder: Decoder, batch: Batch, *, label_smoothing: float = 0.0) -> Flow:
    """Measure the last token's gradient at every earlier state; does not change the decoder."""
    gradients = state_gradients(decoder, batch, label_smoothing=label_smoothing)
    lengths = caption_lengths(batch)
    norms = _norms(gradients)
    last = norms[lengths, torch.arange(len(lengths))]
    reach = int(lengths.median())

    def quantiles(norms: Tensor, *which: float) -> list[list[float]]:
        ratios = _by_distance(norms / last, lengths)[:reach]
        found: list[list[float]] = ratios.nanquantile(ratios.new_tensor(which), dim=1).tolist()
        return found

    low, median, high = quantiles(norms, 0.1, 0.5, 0.9)
    parts = {}
    if decoder.is_lstm:
        for name, half in zip("hc", gradients.split(decoder.num_layers, dim=1), strict=True):
            [parts[name]] = quantiles(_norms(half), 0.5)
    return Flow(
        last=float(last.nanquantile(0.5)),
        low=low,
        median=median,
        high=high,
        parts=parts,
        image=float((norms[0] / last).nanquantile(0.5)),
        image_distance=reach,
        factor=float(median[-1] ** (1 / max(1, reach - 1))),
        vanishes=next((d for d, ratio in enumerate(median) if ratio < VANISHED), None),
        explodes=next((d for d, ratio in enumerate(median) if ratio > EXPLODED), None),
    )


def _norms(gradients: Tensor) -> Tensor:
    """Return the norms over layers and units: (T + 1, S, B, H) -> (T + 1, B)."""
    return gradients.square().sum((1, 3)).sqrt()


def _by_distance(values: Tensor, lengths: Tensor) -> Tensor:
    """Align captions at their ends: (T + 1, B) by step -> (T + 1, B) by distance, padded with NaN.

    Without the initial state, whose distance is different in each caption.
    """
    steps = lengths - torch.arange(len(values))[:, None]
    return values.gather(0, steps.clamp(min=0)).where(steps > 0, torch.nan)


def measure_cuts(decoder: Decoder, batch: Batch, *, label_smoothing: float = 0.0) -> list[Cut]:
    """Compare the truncated gradients of a batch's loss with the full gradient.

    Runs on the CPU, without dropout. Does not change the decoder.

    Returns:
        Windows of 1, 2, 4, ... tokens; the last window is the longest caption, without truncation.
    """
    twin = copy.deepcopy(decoder).cpu().eval()
    batch = Batch(batch.features.cpu(), batch.inputs.cpu(), batch.targets.cpu(), batch.tokens)
    groups = {
        "recurrent": [*twin.cell.parameters()],
        "image": [*twin.init_hidden.parameters()],
    }

    def gradients(window: int) -> dict[str, Tensor]:
        twin.zero_grad()
        bptt.backward(twin, batch, label_smoothing=label_smoothing, window=window)
        return {
            name: torch.cat([p.grad.double().flatten() for p in each if p.grad is not None])
            for name, each in groups.items()
        }

    longest = batch.inputs.shape[1]
    full = gradients(longest)
    cuts = []
    for window in (*(2**n for n in range((longest - 1).bit_length())), longest):
        cut = gradients(window)
        cosines = {
            name: float(functional.cosine_similarity(cut[name], full[name], dim=0)) for name in full
        }
        cuts.append(Cut(window, cosines))
    return cuts


@torch.no_grad()
def mean_keep_gate(decoder: Decoder, batch: Batch) -> float | None:
    """Return the mean of an LSTM's forget gate or a GRU's update gate, which keep the state.

    The mean is over units and tokens in the first layer, in (0, 1); None for a cell without gates.
    """
    if not isinstance(decoder.cell, nn.LSTM | nn.GRU):
        return None
    twin = copy.deepcopy(decoder).cpu().eval()
    weights = dict(twin.cell.named_parameters())
    from_word = functional.linear(
        twin.embedding(batch.inputs.cpu()), weights["weight_ih_l0"], weights["bias_ih_l0"]
    )
    hidden = twin.init_hidden(batch.features.cpu())
    gates = []
    for step, token_ids in enumerate(batch.inputs.cpu().split(1, dim=1)):
        from_state = functional.linear(hidden[0], weights["weight_hh_l0"], weights["bias_hh_l0"])
        # torch's order of gates: i, f, g, o in an LSTM, r, z, n in a GRU; take f or z.
        gate = (from_word[:, step] + from_state).split(hidden.shape[-1], dim=1)[1]
        gates.append(gate.sigmoid().mean(1))
        _, hidden = twin.run_cell(token_ids, hidden)
    real = batch.targets.cpu() != Vocabulary.pad_id
    return float(torch.stack(gates, dim=1)[real].mean())


@torch.no_grad()
def recurrent_sizes(decoder: Decoder) -> tuple[float, float] | None:
    """Return the largest absolute eigenvalue and the largest singular value of W_hh.

    None for a cell with gates, whose Jacobian depends on several matrices.
    """
    if isinstance(decoder.cell, nn.LSTM | nn.GRU):
        return None
    weights = dict(decoder.cell.named_parameters())
    name = "weight_hh_l0" if "weight_hh_l0" in weights else "W_hh.0"  # torch's cells, or elman
    if name not in weights:  # a plug-in's cell
        return None
    matrix = weights[name].detach().double().cpu()
    if not matrix.isfinite().all():  # training diverged; LAPACK raises an error
        return math.nan, math.nan
    radius = torch.linalg.eigvals(matrix).abs().max()
    return float(radius), float(torch.linalg.matrix_norm(matrix, ord=2))
