"""Gradients through time of every cell, before and after training: measured and written down."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from tqdm import tqdm

from captioner.config import Config, TrainingConfig
from captioner.errors import ConfigError, DataError
from captioner.files import write_text
from captioner.models.captioner import Captioner, choose_device
from captioner.models.decoder import Decoder
from captioner.training import bptt
from captioner.training.gradients import (
    Cut,
    Flow,
    caption_lengths,
    mean_keep_gate,
    measure_cuts,
    measure_flow,
    recurrent_sizes,
)
from captioner.training.prepare import open_encoder, prepare
from captioner.training.tables import Batch, CaptionTable, epoch_order, iterate
from captioner.training.telemetry import read_metrics

CELLS: Final[tuple[dict[str, Any], ...]] = (
    {"cell": "rnn", "nonlinearity": "tanh"},
    {"cell": "rnn", "nonlinearity": "relu"},
    {"cell": "gru", "nonlinearity": "tanh"},
    {"cell": "lstm", "nonlinearity": "tanh"},
)


@dataclass(frozen=True, slots=True)
class Stage:
    """A cell at one moment.

    Attributes:
        flow: of the last token's gradient.
        cuts: what truncation loses of the batch's gradient, by window.
        kept: mean of the gate that keeps the state; None without gates.
        radius: largest absolute eigenvalue of W_hh; None with gates.
        sigma: largest singular value of W_hh; None with gates.
    """

    flow: Flow
    cuts: list[Cut]
    kept: float | None
    radius: float | None
    sigma: float | None


@dataclass(frozen=True, slots=True)
class Clipping:
    """What clipping did during training.

    Attributes:
        norms: gradient norms before clipping, in order; of each step, or means over some steps
            where a run's log has no more.
        share: of the steps that were clipped.
        factor: mean by which the clipped ones were shrunk, in (0, 1]; None where none was.
    """

    norms: list[float]
    share: float
    factor: float | None


@dataclass(frozen=True, slots=True)
class CellStudy:
    """One cell before and after training; no clipping where the run's log is gone."""

    name: str
    before: Stage
    after: Stage
    clipping: Clipping | None


@dataclass(frozen=True, slots=True)
class Study:
    """All that was measured.

    Attributes:
        captions: in the batch measured on.
        shortest: caption of the batch, in tokens to predict.
        longest: caption of the batch.
        steps: of training between before and after; None where a finished model was measured.
        clip_norm: gradients were clipped to.
        seed: of weights, order and dropout.
        cells: what was measured of each.
    """

    captions: int
    shortest: int
    longest: int
    steps: int | None
    clip_norm: float
    seed: int
    cells: list[CellStudy]


Say = Callable[[str], None]


def study_cells(
    config: Config, *, steps: int, length: int | None = None, device: str = "auto", say: Say
) -> Study:
    """Train each cell for a while from the same seed; measure before and after.

    Args:
        config: whose data, sizes and training settings are used, whatever its cell.
        steps: of training for each cell.
        length: tokens of the sequences that captions are joined to; None: captions as they are.
        device: to train on.
        say: told what happens.

    Raises:
        CaptionerError: if data or weights cannot be used.
    """
    chosen = choose_device(device)
    encoder = open_encoder(config, chosen)
    prepared = prepare(config, encoder, say)
    table = _table(prepared.train, length)
    training = config.training
    batch = longest_batch(table, training.batch_size, seed=training.seed)
    cells = []
    with tqdm(total=len(CELLS) * steps, unit="step") as bar:
        for kind in CELLS:
            name = f"rnn {kind['nonlinearity']}" if kind["cell"] == "rnn" else kind["cell"]
            bar.set_description(name)
            settings = {
                "vocab_size": len(prepared.vocabulary),
                "feature_size": encoder.feature_size,
                **config.decoder.model_dump(),
                **kind,
            }
            decoder = _fresh(settings, training.seed, table.features).to(chosen)
            before = _stage(decoder, batch, training)
            norms = _train(decoder, table.to(chosen), training, steps, bar)
            after = _stage(decoder, batch, training)
            cells.append(CellStudy(name, before, after, _clipping(norms, training.clip_norm)))
    return _study(batch, training, steps, cells)


def study_model(
    captioner: Captioner, config: Config, folder: Path, *, length: int | None = None, say: Say
) -> Study:
    """Measure a trained model, and what it was before training.

    Args:
        captioner: the model.
        config: of its run.
        folder: the model directory; the log of its run is looked for around it.
        length: tokens of the sequences that captions are joined to; None: captions as they are.
        say: told what happens.

    Raises:
        CaptionerError: if the data cannot be used.
    """
    prepared = prepare(config, captioner.encoder, say)
    if prepared.vocabulary.words != captioner.vocabulary.words:
        raise DataError(
            f"{config.data.root}: not the captions this model was trained on: their vocabulary "
            f"is another"
        )
    table, training = _table(prepared.train, length), config.training
    batch = longest_batch(table, training.batch_size, seed=training.seed)
    settings = captioner.decoder.settings
    fresh = _fresh(settings, training.seed, table.features)
    lines = [x for x in read_metrics(folder / "../metrics.jsonl") if x["kind"] == "step"]
    clipping = _clipping([line["grad_norm"] for line in lines], training.clip_norm)
    if clipping:  # the log has means of norms, but the share itself
        clipping = replace(clipping, share=sum(x["clipped"] for x in lines) / len(lines))
    name = settings["cell"]
    cell = CellStudy(
        name=f"{name} {settings['nonlinearity']}" if name in ("rnn", "elman") else name,
        before=_stage(fresh, batch, training),
        after=_stage(captioner.decoder, batch, training),
        clipping=clipping,
    )
    return _study(batch, training, None, [cell])


def join_captions(table: CaptionTable, length: int) -> CaptionTable:
    """Join neighbouring captions to long sequences, to see further back than one caption.

    A sequence is shown the image of its first caption; captions of the same image are
    neighbours.

    Args:
        table: of captions.
        length: tokens to predict of each sequence; what hangs over is cut off.

    Raises:
        ConfigError: if all captions together are shorter.
    """
    sequences: list[Tensor] = []
    firsts: list[int] = []
    parts: list[Tensor] = []
    first = gathered = 0
    for i, (token_ids, tokens) in enumerate(
        zip(table.token_ids, table.lengths.tolist(), strict=True)
    ):
        parts.append(token_ids[:tokens])
        gathered += tokens
        if gathered > length:
            sequences.append(torch.cat(parts)[: length + 1])
            firsts.append(first)
            parts, gathered, first = [], 0, i + 1
    if not sequences:
        raise ConfigError(f"--length {length}: all training captions make {gathered} tokens only")
    return replace(
        table,
        token_ids=torch.stack(sequences),
        lengths=torch.full((len(sequences),), length + 1),
        rows=table.rows[firsts],
    )


def longest_batch(table: CaptionTable, batch_size: int, *, seed: int) -> Batch:
    """Return the batch of the first epoch whose shortest caption is longest: a view far back."""
    batches = epoch_order(table.lengths, batch_size, seed=seed, epoch=0)
    sizes = [(len(chosen), int(table.lengths[chosen].min())) for chosen in batches]
    start = sizes.index(max(sizes))
    return next(iterate(table, batch_size, seed=seed, epoch=0, start=start))


def _table(table: CaptionTable, length: int | None) -> CaptionTable:
    return join_captions(table, length) if length else table


def _fresh(settings: dict[str, Any], seed: int, features: Tensor) -> Decoder:
    torch.manual_seed(seed)
    decoder = Decoder(**settings)
    decoder.init_hidden.measure(features)
    return decoder


def _stage(decoder: Decoder, batch: Batch, training: TrainingConfig) -> Stage:
    smoothing = training.label_smoothing
    radius, sigma = recurrent_sizes(decoder) or (None, None)
    return Stage(
        flow=measure_flow(decoder, batch, label_smoothing=smoothing),
        cuts=measure_cuts(decoder, batch, label_smoothing=smoothing),
        kept=mean_keep_gate(decoder, batch),
        radius=radius,
        sigma=sigma,
    )


def _train(
    decoder: Decoder, table: CaptionTable, training: TrainingConfig, steps: int, bar: Any
) -> list[float]:
    """Take steps as a run does, in fp32; stop where the gradient is no number any more.

    Returns:
        Gradient norms before clipping.
    """
    decoder.train()
    optimizer = torch.optim.AdamW(
        [p for p in decoder.parameters() if p.requires_grad],
        betas=(0.9, training.beta2),
        weight_decay=training.weight_decay,
    )
    norms: list[float] = []
    for step, batch in enumerate(islice(_endless(table, training), steps)):
        bptt.backward(
            decoder, batch, label_smoothing=training.label_smoothing, window=training.bptt_window
        )
        share = bptt.schedule(
            step,
            total_steps=steps,
            warmup_steps=training.warmup_steps,
            kind=training.schedule,
        )
        optimizer.param_groups[0]["lr"] = training.learning_rate * share
        norms.append(float(bptt.clip(decoder.parameters(), training.clip_norm)))
        if not math.isfinite(norms[-1]):
            break
        optimizer.step()
        optimizer.zero_grad()
        bar.update()
    return norms


def _endless(table: CaptionTable, training: TrainingConfig) -> Iterator[Batch]:
    for epoch in count():
        yield from iterate(table, training.batch_size, seed=training.seed, epoch=epoch)


def _clipping(norms: list[float], clip_norm: float) -> Clipping | None:
    if not norms:
        return None
    clipped = [norm for norm in norms if not norm <= clip_norm]
    factor = sum(clip_norm / norm for norm in clipped) / len(clipped) if clipped else None
    return Clipping(norms, len(clipped) / len(norms), factor)


def _study(
    batch: Batch, training: TrainingConfig, steps: int | None, cells: list[CellStudy]
) -> Study:
    lengths = caption_lengths(batch)
    return Study(
        captions=len(lengths),
        shortest=int(lengths.min()),
        longest=int(lengths.max()),
        steps=steps,
        clip_norm=training.clip_norm,
        seed=training.seed,
        cells=cells,
    )


def write_json(study: Study, path: Path) -> None:
    """Write all figures; what is no number is null."""
    write_text(path, json.dumps(_plain(asdict(study)), allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """Round floats to six digits, and leave out what JSON cannot say."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
