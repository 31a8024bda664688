"""One training run, from a config to a model directory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from captioner.captioner import Captioner, choose_device
from captioner.config import Config, home_path, load_config
from captioner.data.caption_table import CaptionTable
from captioner.data.prepare import Prepared, open_dataset, open_encoder, prepare
from captioner.decoder.decoder import Decoder
from captioner.decoder.neighbours import CaptionNgrams, Neighbours
from captioner.encoder.encoder import Encoder, dtype_of
from captioner.errors import ConfigError, within_memory
from captioner.run_dir import identity_of, saved_steps
from captioner.system.files import sweep, sweep_marked, write_text
from captioner.system.foreign import excerpt, plain
from captioner.system.ownership import begin, check, clear, mark, owns
from captioner.system.world import World, joined
from captioner.training.checkpoint import (
    check_identity,
    left_alone,
)
from captioner.training.dev import DevSplit
from captioner.training.loop import Stopped, Trainer
from captioner.training.self_critical import SelfCritical
from captioner.training.start import start_weights
from captioner.training.telemetry import RunLog, peak_memory
from captioner.training.update import check_room

RUN_FILES = ("config.yaml", "train.log", "metrics.jsonl", "curves.png")
Assemble: TypeAlias = Callable[[Decoder], Captioner]
MAX_SCST_RATE = 2e-5  # a peak of 1e-4 over-fits Flickr8k within an epoch


@dataclass(frozen=True, slots=True)
class Summary:
    """The result of a run.

    Attributes:
        folder: run folder.
        metric: name of the dev score that selected the model.
        signature: describes how that score is computed.
        best_score: best value of the score.
        best_epoch: from 1; 0: no epoch was better than the initial weights.
        epochs: completed epochs.
        seconds: time of training and scoring, without encoding images.
        tokens_per_second: training tokens per second of that time.
        peak_memory: bytes, of the device or of this process.
    """

    folder: Path
    metric: str
    signature: str
    best_score: float
    best_epoch: int
    epochs: int
    seconds: float
    tokens_per_second: float
    peak_memory: int


@within_memory("to train")
def train(
    config: Config,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
) -> Summary:
    """Train a captioner.

    Args:
        config: settings; must equal the config of a resumed run.
        folder: run folder to write.
        resume: continue the run in the folder, or start one if there is none.
        overwrite: delete the run in the folder, but no other files, and start.
        device: "auto", "cpu", "cuda", ...

    Returns:
        The best score and statistics of the run.

    Raises:
        CaptionerError: if the data, the weights or the folder cannot be used.
        Stopped: on SIGINT or SIGTERM, after the state is saved.
    """
    with joined(choose_device(device)) as (world, own_device):
        if world.leads:
            _spare_model(folder, config, overwrite)
            _check_folder(folder, config, resume, overwrite)
        encoder = open_encoder(config, own_device)
        if world.leads:
            if overwrite:
                open_dataset(config.data)  # find errors in the data before a run is deleted
            _open_folder(folder, config, resume)
        world.wait()
        log = RunLog(folder, silent=not world.leads)
        if foreign := left_alone(folder / "checkpoints"):
            names = plain(", ".join(foreign))
            log.say(
                f"{folder / 'checkpoints'}: files that are not checkpoints are ignored: {names}"
            )
        known = {"encoder": encoder.fingerprint(), "arithmetic": encoder.arithmetic}
        if resume and world.leads and (saved := identity_of(folder / "checkpoints")):
            check_identity(saved, known, folder)  # encoding the images would take long
        prepared = prepare(config, encoder, log.say, world)
        trainer, assemble = _build(config, prepared, encoder, known, own_device, log, world, resume)
        if resume:
            trainer.resume()
        trainer.run()
        if world.leads:
            assemble(trainer.decoder).save(folder / "model")
            log.draw_curves()
    progress = trainer.progress
    return Summary(
        folder=folder,
        metric=config.training.metric,
        signature=progress.signature,
        best_score=progress.best_score,
        best_epoch=progress.best_epoch,
        epochs=progress.epoch,
        seconds=progress.seconds,
        tokens_per_second=progress.tokens / max(progress.seconds, 1e-9),
        peak_memory=peak_memory(own_device),
    )


def _build(
    config: Config,
    prepared: Prepared,
    encoder: Encoder,
    known: dict[str, str],
    device: torch.device,
    log: RunLog,
    world: World,
    resume: bool,
) -> tuple[Trainer, Assemble]:
    """Build the trainer, and the function that makes a captioner of the trained decoder."""
    resumed = world.broadcast(bool(resume and saved_steps(log.folder / "checkpoints")))
    decoder = build_decoder(config, prepared, encoder, device, world, resumed=resumed)
    table, critic = build_objective(config, prepared, decoder, device, log, world)
    weights = sum(p.numel() for p in decoder.parameters() if p.requires_grad)
    log.say(
        f"training {weights / 1e6:.1f} million weights on {len(prepared.train):,} captions "
        f"({device})"
    )
    assemble = build_assembly(config, prepared, encoder, device)
    words = "\n".join(prepared.vocabulary.words)
    identity = {
        "config": config.model_dump(mode="json"),
        **known,
        "vocabulary": hashlib.blake2b(words.encode(), digest_size=16).hexdigest(),
        **prepared.data,
    }
    dev = DevSplit(prepared.dev, assemble, log.say)
    trainer = Trainer(
        decoder,
        table,
        dev,
        config.training,
        log=log,
        identity=identity,
        world=world,
        critic=critic,
    )
    return trainer, assemble


def build_decoder(
    config: Config,
    prepared: Prepared,
    encoder: Encoder,
    device: torch.device,
    world: World,
    *,
    resumed: bool,
) -> Decoder:
    """Build the decoder with random weights or the weights of `training.start_from`.

    Args:
        config: of the run.
        prepared: data of the run.
        encoder: the frozen CNN.
        device: to train on.
        world: the processes that train together.
        resumed: whether a checkpoint will replace the weights.

    Raises:
        ConfigError: if the decoder does not fit into memory, or `start_from` does not fit the run.
    """
    training, table = config.training, prepared.train
    sizes = {"vocab_size": len(prepared.vocabulary), "feature_size": encoder.feature_size}
    check_room(config.decoder, training, device, **sizes)
    torch.manual_seed(training.seed)
    decoder = Decoder(config.decoder, **sizes)
    if training.start_from is None:
        decoder.init_hidden.measure(table.features, table.rows.unique())
    elif not resumed:  # a checkpoint replaces the weights, and start_from may be gone
        start: dict[str, Tensor] = {}
        if world.leads:  # other machines may not have the folder
            start = start_weights(training.start_from, decoder, encoder, prepared.vocabulary)
        decoder.load_state_dict(world.broadcast(start))
    return decoder.to(device)


def build_objective(
    config: Config,
    prepared: Prepared,
    decoder: Decoder,
    device: torch.device,
    log: RunLog,
    world: World,
) -> tuple[CaptionTable, SelfCritical | None]:
    """Build the table of training batches, and the critic for self-critical training.

    Args:
        config: of the run.
        prepared: data of the run.
        decoder: samples the captions.
        device: to train on.
        log: of the run.
        world: the processes that train together.

    Returns:
        The table and the critic; None for cross-entropy.

    Raises:
        DataError: if a critic has only one image, for which CIDEr-D is undefined.
    """
    training = config.training
    if training.objective == "xent":
        return prepared.train, None
    if training.learning_rate > MAX_SCST_RATE:
        log.say(
            f"warning: training.learning_rate {training.learning_rate:g} is high for scst: small "
            f"data sets over-fit within an epoch; 1e-5 works for Flickr8k"
        )
    critic = SelfCritical(
        decoder,
        prepared.vocabulary,
        prepared.references,
        training,
        max_length=config.decoding.max_length,
        dtype=dtype_of(training.precision, device),
        world=world,
    )
    return prepared.train.per_image(), critic


def build_assembly(
    config: Config, prepared: Prepared, encoder: Encoder, device: torch.device
) -> Assemble:
    """Return a function that makes a captioner of a decoder with its current weights.

    Args:
        config: of the run.
        prepared: data of the run; its captions rank the beam if `decoding.neighbours` is above 0.
        encoder: the frozen CNN.
        device: of encoder and decoder.
    """
    table, ngrams = prepared.train, None
    if config.decoding.neighbours:
        # Lengths without start and end token: the end token then counts as padding.
        ngrams = CaptionNgrams.of(table.token_ids[:, 1:], table.lengths - 2, table.images)
        ngrams = ngrams.to(device)

    def assemble(decoder: Decoder) -> Captioner:
        neighbours = None
        if ngrams is not None:
            features = (batch.to(device) for batch in table.image_features())
            neighbours = Neighbours.gather(decoder, features, ngrams)
        captioner = Captioner(encoder, decoder, prepared.vocabulary, config.decoding, neighbours)
        captioner.device = device
        return captioner

    return assemble


def _spare_model(folder: Path, config: Config, overwrite: bool) -> None:
    """Refuse to delete the model that the run starts from."""
    model = config.training.start_from
    if overwrite and model and home_path(model).resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"training.start_from: {model} is in {folder}, which --overwrite deletes; "
            f"write to another folder with --output DIR"
        )


def _check_folder(folder: Path, config: Config, resume: bool, overwrite: bool) -> None:
    """Refuse a folder with files that the run would overwrite without permission.

    Raises:
        ConfigError: if the folder holds files that captioner did not write, or a run and neither
            `resume` nor `overwrite`.
    """
    if not (resume and _is_unmarked_run(folder)):
        check(folder, "run")
        for kind in ("checkpoints", "tensorboard"):
            check(folder / kind, kind)
    check(folder / "model", "model")
    for name in RUN_FILES:
        place = folder / name
        if os.path.lexists(place) and (place.is_symlink() or not place.is_file()):
            raise ConfigError(f"{place}: not a regular file; a run writes this file; move it away")
    steps = saved_steps(folder / "checkpoints")
    begun = (folder / "config.yaml").is_file()
    if resume and begun:
        _check_same(folder, config)
    elif (steps or (folder / "model").exists()) and not overwrite:
        if resume:
            raise ConfigError(f"{folder}: config.yaml of the run is missing; restore the file")
        length = f" of {int(steps[-1].stem[5:]):,} steps" if steps else ""
        raise ConfigError(
            f"{folder}: already holds a run{length}; --resume continues the run, --output DIR "
            f"writes elsewhere, --overwrite deletes the run and starts over"
        )


def _open_folder(folder: Path, config: Config, resume: bool) -> None:
    """Prepare the run folder after `_check_folder`."""
    if resume and _is_unmarked_run(folder):
        for kind in ("run", "checkpoints", "tensorboard"):
            path = folder if kind == "run" else folder / kind
            if path.is_dir():
                mark(path, kind)
    begin(folder, "run")
    sweep(folder / "model")
    sweep_marked(folder, "run")
    sweep_marked(folder / "checkpoints", "checkpoints")
    if resume and (folder / "config.yaml").is_file():
        return
    clear(folder, "run")
    write_text(folder / "config.yaml", config.to_yaml(), "in run")


def _is_unmarked_run(folder: Path) -> bool:
    """Whether a folder holds a run of an early captioner, which did not mark its folders."""
    return not owns(folder, "run") and bool(identity_of(folder / "checkpoints"))


def _check_same(folder: Path, asked: Config) -> None:
    """Refuse to resume a run with different settings."""
    config = load_config(str(folder / "config.yaml"))
    if asked == config:
        return
    ours, theirs = config.model_dump(), asked.model_dump()
    differing = [
        f"{section}.{key}: the run has {excerpt(value)}, given {excerpt(theirs[section][key])}"
        for section, values in ours.items()
        for key, value in values.items()
        if value != theirs[section][key]
    ]
    raise ConfigError(f"{folder}: cannot resume the run with different settings", *differing)


__all__ = ["Stopped", "Summary", "train"]
