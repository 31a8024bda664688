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
CAREFUL = 2e-5  # peak learning rate; five times as much over-fits Flickr8k within an epoch


@dataclass(frozen=True, slots=True)
class Summary:
    """What came of a run.

    Attributes:
        folder: run folder.
        metric: name of the dev score that chose the model.
        signature: how that score was made.
        best_score: its best value.
        best_epoch: from 1; 0: no epoch was better than the weights it started from.
        epochs: done.
        seconds: spent training and scoring, features not included.
        tokens_per_second: over that time.
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
        config: what to do; a run that is resumed keeps its own, and must have been this one.
        folder: run folder to write.
        resume: go on with the run in the folder, or start it where there is none.
        overwrite: delete the run in the folder and start; what else is in it stays.
        device: "auto", "cpu", "cuda", ...

    Returns:
        The best score and where everything is.

    Raises:
        CaptionerError: if the data, the weights or the folder cannot be used.
        Stopped: if the run was asked to stop; its state is saved.
    """
    with joined(choose_device(device)) as (world, own_device):
        if world.leads:
            _spare_model(folder, config, overwrite)
            _check_folder(folder, config, resume, overwrite)
        encoder = open_encoder(config, own_device)
        if world.leads:
            if overwrite:
                open_dataset(config.data)  # a mistake there is found before a run is deleted
            _open_folder(folder, config, resume)
        world.wait()
        log = RunLog(folder, silent=not world.leads)
        if foreign := left_alone(folder / "checkpoints"):
            log.say(
                f"{folder / 'checkpoints'}: no checkpoints, left alone: {plain(', '.join(foreign))}"
            )
        known = {"encoder": encoder.fingerprint(), "arithmetic": encoder.arithmetic}
        if resume and world.leads and (saved := identity_of(folder / "checkpoints")):
            check_identity(saved, known, folder)  # before all images are encoded in vain
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
    """Build what trains, and what makes a captioner of the trained decoder."""
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
    """Build the decoder with its first weights: random ones, or those of `training.start_from`.

    Args:
        config: of the run.
        prepared: its data.
        encoder: the frozen CNN.
        device: to train on.
        world: the processes that train together.
        resumed: whether a checkpoint will replace the weights.

    Raises:
        ConfigError: if the decoder does not fit into memory, or the start does not fit the run.
    """
    training, table = config.training, prepared.train
    sizes = {"vocab_size": len(prepared.vocabulary), "feature_size": encoder.feature_size}
    check_room(config.decoder, training, device, **sizes)
    torch.manual_seed(training.seed)
    decoder = Decoder(config.decoder, **sizes)
    if training.start_from is None:
        decoder.init_hidden.measure(table.features, table.rows.unique())
    elif not resumed:  # else a checkpoint holds all, and the start may be gone
        start: dict[str, Tensor] = {}
        if world.leads:  # others may be on other machines
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
    """Choose what is learnt from: people's captions, or those that a critic draws and weighs.

    Args:
        config: of the run.
        prepared: its data.
        decoder: draws the captions.
        device: to train on.
        log: of the run.
        world: the processes that train together.

    Returns:
        The table that batches come from, and the critic; None for cross-entropy.

    Raises:
        DataError: if there is only one image, where a critic has nothing to compare.
    """
    training = config.training
    if training.objective == "xent":
        return prepared.train, None
    if training.learning_rate > CAREFUL:
        log.say(
            f"warning: training.learning_rate {training.learning_rate:g} is high for scst, "
            f"which then over-fits small data sets within an epoch; 1e-5 did well on Flickr8k"
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
    """Return what makes a captioner of a decoder and its weights of the moment.

    Args:
        config: of the run.
        prepared: its data, whose captions vote where `decoding.neighbours` is above 0.
        encoder: the frozen CNN.
        device: where encoder and decoder are.
    """
    table, ngrams = prepared.train, None
    if config.decoding.neighbours:
        # Without start tokens, and without ends: padding is as good.
        ngrams = CaptionNgrams.count(table.token_ids[:, 1:], table.lengths - 2, table.images)
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
            f"training.start_from: {model} lies in {folder}, which --overwrite deletes; "
            f"--output DIR writes elsewhere"
        )


def _check_folder(folder: Path, config: Config, resume: bool, overwrite: bool) -> None:
    """Make sure, before anything is written, that a run destroys nothing that was not given up.

    Raises:
        ConfigError: if something of somebody else's stands where the run would write, or a run that
            is neither to be resumed nor overwritten.
    """
    if not (resume and _is_unmarked_run(folder)):
        check(folder, "run")
        for kind in ("checkpoints", "tensorboard"):
            check(folder / kind, kind)
    check(folder / "model", "model")
    for name in RUN_FILES:
        place = folder / name
        if os.path.lexists(place) and (place.is_symlink() or not place.is_file()):
            raise ConfigError(f"{place}: a run writes a file there; move away what is in its place")
    steps = saved_steps(folder / "checkpoints")
    begun = (folder / "config.yaml").is_file()
    if resume and begun:
        _check_same(folder, config)
    elif (steps or (folder / "model").exists()) and not overwrite:
        if resume:
            raise ConfigError(f"{folder}: its config.yaml is gone; put that of the run back")
        reached = f", {int(steps[-1].stem[5:]):,} steps long" if steps else ""
        raise ConfigError(
            f"{folder}: there is a run in it already{reached}; --resume goes on with it, --output "
            f"DIR writes elsewhere, --overwrite deletes it and starts over"
        )


def _open_folder(folder: Path, config: Config, resume: bool) -> None:
    """Make the run folder ready; `_check_folder` has looked at it."""
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
    """Whether a folder holds checkpoints of a captioner that marked no folders yet."""
    return not owns(folder, "run") and bool(identity_of(folder / "checkpoints"))


def _check_same(folder: Path, asked: Config) -> None:
    """Refuse to resume a run with other settings than its own."""
    config = load_config(str(folder / "config.yaml"))
    if asked == config:
        return
    ours, theirs = config.model_dump(), asked.model_dump()
    differing = [
        f"{section}.{key}: the run has {excerpt(value)}, asked for {excerpt(theirs[section][key])}"
        for section, values in ours.items()
        for key, value in values.items()
        if value != theirs[section][key]
    ]
    raise ConfigError(f"{folder}: a run is resumed with its own settings only", *differing)


__all__ = ["Stopped", "Summary", "train"]
