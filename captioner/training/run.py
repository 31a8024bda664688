"""One training run, from a config to a model directory."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from captioner.captioner import Captioner
from captioner.config import Config, home_path, load_config
from captioner.data.caption_table import CaptionTable
from captioner.data.dataset import Dataset
from captioner.data.prepare import Prepared, open_dataset, open_encoder, prepare
from captioner.decoder.decoder import SPECIAL_IDS, Decoder
from captioner.decoder.neighbours import Neighbours, count_ngrams
from captioner.encoder.encoder import Encoder, dtype_of
from captioner.errors import ConfigError, checked_names, must_be, within_memory
from captioner.model_card import Source, write_card
from captioner.model_config import plugins_of
from captioner.run_dir import identity_of, saved_steps
from captioner.steering import steered
from captioner.system.devices import choose_device
from captioner.system.files import sweep, sweep_marked, write_text
from captioner.system.foreign import excerpt, plain
from captioner.system.ownership import CARD, begin, check, check_writable, clear
from captioner.system.world import World, joined
from captioner.text import Vocabulary
from captioner.training.checkpoint import Progress, check_identity, left_alone
from captioner.training.dev import DevSplit
from captioner.training.loop import Stopped, Trainer
from captioner.training.machines import check_alike, check_newest
from captioner.training.self_critical import SelfCritical
from captioner.training.start import start_vocabulary, start_weights
from captioner.training.telemetry import RunLog, peak_memory
from captioner.training.update import check_room

RUN_FILES = ("config.yaml", "train.log", "metrics.jsonl", "curves.png")
MAX_SCST_RATE = 2e-5  # a peak of 1e-4 over-fits Flickr8k within an epoch


@dataclass(frozen=True, slots=True)
class Summary:
    """The result of a run."""

    folder: Path
    metric: str  # name of the dev score that selected the model
    progress: Progress
    peak_memory: int  # bytes, of the device or of this process


@within_memory("to train")
@checked_names
def train(
    config: Config,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
) -> Summary:
    """Train a captioner in a run folder; return the result.

    To resume is to continue the run in the folder, whose config must be equal, or to start one if
    there is none. To overwrite is to delete the run in the folder, but no other files, and start.

    Of several processes, the first one's config holds, and it alone writes the folder. Each reads
    the data at the paths of the config, on its own machine.

    Raises:
        CaptionerError: if the data, the weights or the folder cannot be used, or differ between
            processes.
        Stopped: on SIGINT or SIGTERM, after the state is saved.
    """
    must_be("config", config, Config)
    with joined(choose_device(device)) as (world, own_device):
        config = world.broadcast(config)  # a resumed run's is in its folder, on one machine
        world.lead(lambda: check_folder(folder, config, resume, overwrite))
        dataset = open_dataset(
            config.data, config.encoder.features
        )  # fails before weights are downloaded
        encoder = open_encoder(config, own_device)
        log = RunLog(folder, silent=not world.leads, waiting=True)
        checkpoints = folder / "checkpoints"
        if resume:
            check_newest(checkpoints, world)
        if foreign := left_alone(checkpoints):
            names = plain(", ".join(foreign))
            log.say(f"{checkpoints}: files that are not checkpoints are ignored: {names}")
        known = {"encoder": encoder.fingerprint(), "arithmetic": encoder.arithmetic}
        if resume and world.leads and (saved := identity_of(checkpoints)):
            check_identity(saved, known, folder)  # encoding the images would take long
        base = _known_words(config, checkpoints, resume, world)
        prepared = prepare(config, encoder, log.say, world, dataset, base)
        setup = _Setup(config, prepared, encoder, own_device, log, world)
        trainer = setup.trainer(known, resume)
        if world.leads:  # only now, so that a failed start deletes and leaves nothing
            _open_folder(folder, config, resume)
            log.open()
        world.wait()
        if resume:
            trainer.resume()
        trainer.run()
        if world.leads:
            setup.finish(trainer, dataset).save(folder / "model")
            best_epoch = trainer.progress.best_epoch
            log.draw_curves(clip_norm=config.training.clip_norm, best_epoch=best_epoch)
    return Summary(folder, config.training.metric, trainer.progress, peak_memory(own_device))


def _known_words(
    config: Config, checkpoints: Path, resume: bool, world: World
) -> Vocabulary | None:
    """Return the vocabulary of the model that the run starts from, if it starts from one."""
    folder, words = config.training.start_from, None
    if folder and world.leads:  # other machines may not have the folder
        words = start_vocabulary(folder, resumed=bool(resume and saved_steps(checkpoints)))
    return world.broadcast(words)


@dataclass(frozen=True)
class _Setup:
    """Builds what a run needs from its config and its data."""

    config: Config
    prepared: Prepared
    encoder: Encoder
    device: torch.device
    log: RunLog
    world: World

    def trainer(self, known: dict[str, str], resume: bool) -> Trainer:
        config, prepared, log = self.config, self.prepared, self.log
        steered(SPECIAL_IDS, config.decoding, prepared.vocabulary)  # not after the first epoch
        resumed = self.world.broadcast(bool(resume and saved_steps(log.folder / "checkpoints")))
        decoder = self._decoder(resumed)
        critic = None if config.training.objective == "xent" else self._critic(decoder)
        weights = sum(p.numel() for p in decoder.parameters() if p.requires_grad)
        log.say(
            f"training {weights / 1e6:.1f} million weights on {len(prepared.train):,} captions "
            f"({self.device})"
        )
        words = "\n".join(prepared.vocabulary.words)
        identity = {
            "config": config.model_dump(mode="json"),
            **known,
            "vocabulary": hashlib.blake2b(words.encode(), digest_size=16).hexdigest(),
            **prepared.data,
        }
        check_alike(identity | {"plug-ins": self._plugins()}, self.world)
        targets = CaptionTable.build(
            prepared.dev.features,
            prepared.dev.tokens,
            prepared.vocabulary,
            max_length=config.text.max_length,
        )
        dev = DevSplit(prepared.dev, targets, self.assemble, log.say)
        table = prepared.train.per_image() if critic else prepared.train
        return Trainer(decoder, table, dev, config.training, log, identity, self.world, critic)

    def _plugins(self) -> list[str]:
        """Return the plug-ins of cell and CNNs, with their versions."""
        found = plugins_of(self.config.decoder.cell, (c.backbone for c in self.config.encoder.cnns))
        return [f"{each.name} of {each.package} {each.version}" for each in found]

    def _decoder(self, resumed: bool) -> Decoder:
        """Build the decoder with random weights or the weights of `training.start_from`."""
        training, prepared = self.config.training, self.prepared
        words, sizes = len(prepared.vocabulary), self.encoder.sizes
        check_room(self.config.decoder, training, self.device, vocab_size=words, features=sizes)
        torch.manual_seed(training.seed)
        decoder = Decoder(self.config.decoder, vocab_size=words, **sizes)
        decoder.try_cell()
        if training.start_from is None:
            decoder.measure(prepared.train.features, prepared.train.rows.unique())
        elif not resumed:  # a checkpoint replaces the weights, and start_from may be gone
            start: dict[str, Tensor] = {}
            if self.world.leads:  # other machines may not have the folder
                vocabulary = prepared.vocabulary
                start = start_weights(training.start_from, decoder, self.encoder, vocabulary)
            decoder.load_state_dict(self.world.broadcast(start))
        return decoder.to(self.device)

    def _critic(self, decoder: Decoder) -> SelfCritical:
        training = self.config.training
        if training.learning_rate > MAX_SCST_RATE:
            self.log.say(
                f"warning: training.learning_rate {training.learning_rate:g} is high for scst: "
                f"small data sets over-fit within an epoch; 1e-5 works for Flickr8k"
            )
        return SelfCritical(
            decoder,
            self.prepared.vocabulary,
            self.prepared.references,
            training,
            max_length=self.config.decoding.max_length,
            dtype=dtype_of(training.precision, self.device),
            world=self.world,
        )

    @cached_property
    def _ngrams(self) -> dict[str, Tensor]:
        table = self.prepared.train
        # Lengths without start and end token: the end token then counts as padding.
        counted = count_ngrams(table.token_ids[:, 1:], table.lengths - 2, table.images)
        return {name: tensor.to(self.device) for name, tensor in counted.items()}

    def assemble(self, decoder: Decoder) -> Captioner:
        """Make a captioner of a decoder with its current weights."""
        neighbours, decoding = None, self.config.decoding
        if decoding.neighbours:
            features = (rows.to(self.device) for rows in self.prepared.train.image_features())
            neighbours = Neighbours.gather(decoder, features, self._ngrams)
        words = self.prepared.vocabulary
        captioner = Captioner(self.encoder, decoder, words, decoding, neighbours)
        captioner.device = self.device
        return captioner

    def finish(self, trainer: Trainer, dataset: Dataset) -> Captioner:
        """Make a captioner of the trained decoder, with its model card."""
        captioner, prepared = self.assemble(trainer.decoder), self.prepared
        counts = {
            name: (len(images), sum(map(len, images)))
            for name, images in (("train", prepared.references), ("dev", prepared.dev.references))
        }
        source = Source(dataset.name, dataset.format, counts, prepared.data)
        results = trainer.dev.results(captioner, dataset)
        captioner.card = write_card(captioner, self.config, source, results)
        return captioner


def check_folder(folder: Path, config: Config, resume: bool, overwrite: bool) -> None:
    """Refuse a folder with files that the run would overwrite without permission."""
    model = config.training.start_from
    inside = bool(model) and home_path(str(model)).resolve().is_relative_to(folder.resolve())
    if overwrite and inside:
        raise ConfigError(
            f"training.start_from: {model} is in {folder}, which --overwrite deletes; "
            f"write to another folder with --output DIR"
        )
    sweep(folder / "model" / CARD)
    check(folder, "run")
    check_writable(folder)
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
        ways = ["--output DIR writes elsewhere"]
        if (folder / "config.yaml").is_file():
            ways.insert(0, "--resume continues the run")
        if not inside:
            ways.append("--overwrite deletes the run and starts over")
        raise ConfigError(f"{folder}: already holds a run{length}; {', '.join(ways)}")


def _open_folder(folder: Path, config: Config, resume: bool) -> None:
    """Prepare the run folder after `check_folder`."""
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
