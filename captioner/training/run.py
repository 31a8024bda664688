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
from captioner.data.prepare import Prepared, open_dataset, open_encoder, prepare
from captioner.decoder.decoder import Decoder
from captioner.decoder.neighbours import Neighbours, count_ngrams
from captioner.encoder.encoder import Encoder, dtype_of
from captioner.errors import ConfigError, within_memory
from captioner.run_dir import identity_of, saved_steps
from captioner.system.files import sweep, sweep_marked, write_text
from captioner.system.foreign import excerpt, plain
from captioner.system.ownership import begin, check, clear
from captioner.system.world import World, joined
from captioner.training.checkpoint import Progress, check_identity, left_alone
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
        progress: at the end.
        peak_memory: bytes, of the device or of this process.
    """

    folder: Path
    metric: str
    progress: Progress
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
    """Train a captioner; return the result.

    Args:
        config: settings; must equal the config of a resumed run.
        folder: run folder to write.
        resume: continue the run in the folder, or start one if there is none.
        overwrite: delete the run in the folder, but no other files, and start.
        device: "auto", "cpu", "cuda", ...

    Raises:
        CaptionerError: if the data, the weights or the folder cannot be used.
        Stopped: on SIGINT or SIGTERM, after the state is saved.
    """
    with joined(choose_device(device)) as (world, own_device):
        if world.leads:
            _check_folder(folder, config, resume, overwrite)
        encoder = open_encoder(config, own_device)
        if world.leads:
            if overwrite:
                open_dataset(config.data)  # find errors in the data before a run is deleted
            _open_folder(folder, config, resume)
        world.wait()
        log = RunLog(folder, silent=not world.leads)
        checkpoints = folder / "checkpoints"
        if foreign := left_alone(checkpoints):
            names = plain(", ".join(foreign))
            log.say(f"{checkpoints}: files that are not checkpoints are ignored: {names}")
        known = {"encoder": encoder.fingerprint(), "arithmetic": encoder.arithmetic}
        if resume and world.leads and (saved := identity_of(checkpoints)):
            check_identity(saved, known, folder)  # encoding the images would take long
        prepared = prepare(config, encoder, log.say, world)
        trainer, assemble = _build(config, prepared, encoder, known, own_device, log, world, resume)
        if resume:
            trainer.resume()
        trainer.run()
        if world.leads:
            assemble(trainer.decoder).save(folder / "model")
            log.draw_curves()
    return Summary(folder, config.training.metric, trainer.progress, peak_memory(own_device))


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
    decoder = _decoder(config, prepared, encoder, device, world, resumed)
    critic = _critic(config, prepared, decoder, device, log, world)
    weights = sum(p.numel() for p in decoder.parameters() if p.requires_grad)
    log.say(
        f"training {weights / 1e6:.1f} million weights on {len(prepared.train):,} captions "
        f"({device})"
    )
    assemble = _assembly(config, prepared, encoder, device)
    words = "\n".join(prepared.vocabulary.words)
    identity = {
        "config": config.model_dump(mode="json"),
        **known,
        "vocabulary": hashlib.blake2b(words.encode(), digest_size=16).hexdigest(),
        **prepared.data,
    }
    dev = DevSplit(prepared.dev, assemble, log.say)
    table = prepared.train.per_image() if critic else prepared.train
    return Trainer(decoder, table, dev, config.training, log, identity, world, critic), assemble


def _decoder(
    config: Config,
    prepared: Prepared,
    encoder: Encoder,
    device: torch.device,
    world: World,
    resumed: bool,
) -> Decoder:
    """Build the decoder with random weights or the weights of `training.start_from`.

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


def _critic(
    config: Config,
    prepared: Prepared,
    decoder: Decoder,
    device: torch.device,
    log: RunLog,
    world: World,
) -> SelfCritical | None:
    """Build the critic for self-critical training; None for cross-entropy.

    Raises:
        DataError: if there is only one image, for which CIDEr-D is undefined.
    """
    training = config.training
    if training.objective == "xent":
        return None
    if training.learning_rate > MAX_SCST_RATE:
        log.say(
            f"warning: training.learning_rate {training.learning_rate:g} is high for scst: small "
            f"data sets over-fit within an epoch; 1e-5 works for Flickr8k"
        )
    return SelfCritical(
        decoder,
        prepared.vocabulary,
        prepared.references,
        training,
        max_length=config.decoding.max_length,
        dtype=dtype_of(training.precision, device),
        world=world,
    )


def _assembly(
    config: Config, prepared: Prepared, encoder: Encoder, device: torch.device
) -> Assemble:
    """Return a function that makes a captioner of a decoder with its current weights."""
    table, ngrams = prepared.train, None
    if config.decoding.neighbours:
        # Lengths without start and end token: the end token then counts as padding.
        counted = count_ngrams(table.token_ids[:, 1:], table.lengths - 2, table.images)
        ngrams = {name: tensor.to(device) for name, tensor in counted.items()}

    def assemble(decoder: Decoder) -> Captioner:
        neighbours = None
        if ngrams is not None:
            features = (batch.to(device) for batch in table.image_features())
            neighbours = Neighbours.gather(decoder, features, ngrams)
        captioner = Captioner(encoder, decoder, prepared.vocabulary, config.decoding, neighbours)
        captioner.device = device
        return captioner

    return assemble


def _check_folder(folder: Path, config: Config, resume: bool, overwrite: bool) -> None:
    """Refuse a folder with files that the run would overwrite without permission.

    Raises:
        ConfigError: if the folder holds files that captioner did not write, the model that the run
            starts from, or a run and neither `resume` nor `overwrite`.
    """
    model = config.training.start_from
    if overwrite and model and home_path(model).resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"training.start_from: {model} is in {folder}, which --overwrite deletes; "
            f"write to another folder with --output DIR"
        )
    check(folder, "run")
    for kind in ("checkpoints", "tensorboard", "model"):
        check(folder / kind, kind)
    for place in (folder / name for name in RUN_FILES):
        if os.path.lexists(place) and (place.is_symlink() or not place.is_file()):
            raise ConfigError(f"{place}: not a regular file; a run writes this file; move it away")
    steps = saved_steps(folder / "checkpoints")
    if resume and (folder / "config.yaml").is_file():
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
    begin(folder, "run")
    sweep(folder / "model")
    sweep_marked(folder, "run")
    sweep_marked(folder / "checkpoints", "checkpoints")
    if not (resume and (folder / "config.yaml").is_file()):
        clear(folder)
        write_text(folder / "config.yaml", config.to_yaml(), "in run")


def _check_same(folder: Path, asked: Config) -> None:
    """Refuse to resume a run with different settings."""
    ours, theirs = load_config(str(folder / "config.yaml")).model_dump(), asked.model_dump()
    differing = [
        f"{section}.{key}: the run has {excerpt(value)}, given {excerpt(theirs[section][key])}"
        for section, values in ours.items()
        for key, value in values.items()
        if value != theirs[section][key]
    ]
    if differing:
        raise ConfigError(f"{folder}: cannot resume the run with different settings", *differing)


__all__ = ["Stopped", "Summary", "train"]
