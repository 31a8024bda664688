"""Studies gradients through time of cells before and after training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Final, NoReturn

import torch
from tqdm import tqdm

from captioner.captioner import Captioner
from captioner.config import Config, DecoderConfig, TrainingConfig
from captioner.data.caption_table import Batch, CaptionTable, iterate
from captioner.data.prepare import Prepared, open_encoder, prepare
from captioner.decoder.decoder import Decoder
from captioner.encoder.encoder import FeatureSizes
from captioner.errors import DataError
from captioner.gradients.measure import (
    Cut,
    Flow,
    caption_lengths,
    join_captions,
    longest_batch,
    mean_keep_gate,
    measure_cuts,
    measure_flow,
    recurrent_sizes,
)
from captioner.run_dir import read_metrics
from captioner.system.devices import choose_device
from captioner.training import bptt
from captioner.training.update import Updater, check_room

CELLS: Final[tuple[dict[str, str], ...]] = (
    {"cell": "rnn", "nonlinearity": "tanh"},
    {"cell": "rnn", "nonlinearity": "relu"},
    {"cell": "gru", "nonlinearity": "tanh"},
    {"cell": "lstm", "nonlinearity": "tanh"},
)


@dataclass(frozen=True, slots=True)
class Stage:
    """Measurements of a cell before or after training."""

    flow: Flow
    cuts: list[Cut]
    kept: float | None  # mean of the gate that keeps the state; None without gates
    radius: float | None  # largest absolute eigenvalue of W_hh; None with gates
    sigma: float | None  # largest singular value of W_hh; None with gates


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """Losses and gradient norms of each step, or the means in a run's log."""

    losses: list[float]  # nats per token
    norms: list[float]  # before clipping
    clipped: float  # fraction of the steps
    factor: float | None  # mean factor of the clipped steps, in (0, 1)


@dataclass(frozen=True, slots=True)
class CellStudy:
    """One cell before and after training; `log` is None if the run has no log."""

    name: str
    before: Stage
    after: Stage
    log: TrainingLog | None


@dataclass(frozen=True, slots=True)
class Study:
    """The result of a study."""

    captions: int  # in the measured batch
    shortest: int  # targets of the batch's shortest caption
    longest: int
    steps: int | None  # of training; None for a trained model
    clip_norm: float
    seed: int
    cells: list[CellStudy]


Say = Callable[[str], None]


def study_cells(
    config: Config, *, steps: int, length: int | None = None, device: str = "auto", say: Say
) -> Study:
    """Train each of `CELLS` from the same seed, and measure before and after.

    With a length, captions are joined to sequences of that many tokens.

    Raises:
        CaptionerError: if the data or the weights cannot be used.
    """
    chosen = choose_device(device)
    encoder = open_encoder(config, chosen)
    prepared = prepare(config, encoder, say)
    training = config.training
    table, batch = _table(prepared, config, length)
    words, sizes = len(prepared.vocabulary), encoder.sizes
    cells = []
    with tqdm(total=len(CELLS) * steps, unit="step", disable=None) as bar:
        for kind in CELLS:
            settings = config.decoder.model_copy(update=kind)
            bar.set_description(_name(settings))
            check_room(settings, training, chosen, vocab_size=words, features=sizes)
            decoder = _fresh(settings, words, sizes, table, training.seed).to(chosen)
            before = _stage(decoder, batch, training)
            log = _train(decoder, table.to(chosen), training, steps, bar)
            cells.append(CellStudy(_name(settings), before, _stage(decoder, batch, training), log))
    return _study(batch, training, steps, cells)


def study_model(
    captioner: Captioner, config: Config, folder: Path, *, length: int | None = None, say: Say
) -> Study:
    """Measure a trained model, and a decoder with the weights it had before training.

    The parent of the model's folder may hold the log of the run.

    Raises:
        CaptionerError: if the data cannot be used, or the captioner is an ensemble.
    """
    prepared = prepare(config, captioner.encoder, say)
    if prepared.vocabulary.words != captioner.vocabulary.words:
        raise DataError(
            f"{config.data.root}: not the training captions of this model: the vocabulary differs"
        )
    training = config.training
    table, batch = _table(prepared, config, length)
    decoder = captioner.single_decoder("studied; study its models one by one")
    sizes = captioner.encoder.sizes
    fresh = _fresh(decoder.config, decoder.vocab_size, sizes, table, training.seed)
    cell = CellStudy(
        name=_name(decoder.config),
        before=_stage(fresh, batch, training),
        after=_stage(decoder, batch, training),
        log=_read_log(folder.resolve().parent / "metrics.jsonl", training.clip_norm, say),
    )
    return _study(batch, training, None, [cell])


def _table(prepared: Prepared, config: Config, length: int | None) -> tuple[CaptionTable, Batch]:
    """Return the captions to train on, and the batch to measure."""
    table = join_captions(prepared.train, length) if length else prepared.train
    return table, longest_batch(table, config.training.batch_size, seed=config.training.seed)


def _name(settings: DecoderConfig) -> str:
    plain = settings.cell in ("rnn", "elman")
    return f"{settings.cell} {settings.nonlinearity}" if plain else settings.cell


def _fresh(
    config: DecoderConfig, vocab_size: int, sizes: FeatureSizes, table: CaptionTable, seed: int
) -> Decoder:
    torch.manual_seed(seed)
    decoder = Decoder(config, vocab_size=vocab_size, **sizes)
    decoder.try_cell()
    decoder.measure(table.features, table.rows.unique())
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
    decoder: Decoder, table: CaptionTable, training: TrainingConfig, steps: int, bar: tqdm[NoReturn]
) -> TrainingLog:
    """Train as a run does, in fp32; stop if the gradient is not finite."""
    decoder.train()
    updater = Updater(decoder, training, steps, fp16=False)
    losses: list[float] = []
    norms: list[float] = []
    batches = chain.from_iterable(
        iterate(table, training.batch_size, seed=training.seed, epoch=epoch) for epoch in count()
    )
    for step, batch in enumerate(islice(batches, steps)):
        loss = bptt.backward(
            decoder, batch, label_smoothing=training.label_smoothing, window=training.bptt_window
        )
        losses.append(float(loss))
        norms.append(float(updater.update(step)))
        bar.update()
        if not math.isfinite(norms[-1]):
            break
    return _log(losses, norms, training.clip_norm)


def _log(losses: list[float], norms: list[float], clip_norm: float) -> TrainingLog:
    clipped = [norm for norm in norms if not norm <= clip_norm]
    factor = sum(clip_norm / norm for norm in clipped) / len(clipped) if clipped else None
    return TrainingLog(losses, norms, len(clipped) / len(norms), factor)


def _read_log(path: Path, clip_norm: float, say: Say) -> TrainingLog | None:
    lines = [line for line in read_metrics(path, say) if line["kind"] == "step"]
    if not lines:
        return None
    log = _log([x["loss"] for x in lines], [x["grad_norm"] for x in lines], clip_norm)
    # The log has mean norms, but the exact fraction of clipped steps.
    return replace(log, clipped=sum(x["clipped"] for x in lines) / len(lines))


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
