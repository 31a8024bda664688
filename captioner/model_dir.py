"""Reads and writes a model directory, the captioner on disk.

    config.json               settings of encoder, decoder and search
    model.safetensors         weights: `encoder.*` (with several CNNs `encoder.0.*`,
                              `encoder.1.*`, ...) and `decoder.*`; `neighbours.*`, the captions of
                              the training images, if the search uses them; in fp32 or fp16
    vocab.json                words and their ids, and the tokeniser if it is not ptb
    preprocessor_config.json  how an image becomes the CNN's input
    README.md                 the model card, if there is one; not needed to caption

The directory is complete for `captioner caption`. Captioner never runs or unpickles its content.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from captioner.config import DecoderConfig, DecodingConfig, home_path
from captioner.decoder.decoder import Decoder
from captioner.decoder.ensemble import Ensemble
from captioner.decoder.neighbours import Neighbours
from captioner.decoder.packing import pack, unpack
from captioner.encoder.encoder import (
    DTYPES,
    Encoder,
    FrozenEncoder,
    side_by_side,
    side_by_side_features,
)
from captioner.encoder.given_features import GivenFeatures
from captioner.encoder.preprocess import FILE_NAME as PREPROCESSOR
from captioner.encoder.preprocess import (
    Preprocess,
    load_preprocess,
    one_or_list,
    save_preprocess,
)
from captioner.encoder.weights import EncoderSpec, state_of
from captioner.errors import ConfigError, ModelError
from captioner.model_config import (
    CnnConfig,
    FeaturesConfig,
    ModelConfig,
    SizedDecoderConfig,
    Storage,
    model_folder,
    plugins_in_signature,
    plugins_of,
    read_config,
)
from captioner.system.disk import advice
from captioner.system.files import (
    check_regular,
    mistaken_for,
    no_stream,
    read_head,
    sweep,
    whole_folder,
)
from captioner.system.foreign import plain
from captioner.system.no_draws import NoDraws
from captioner.system.ownership import CARD, MAX_CARD, check, owns
from captioner.system.plugins import plugin
from captioner.text import Vocabulary

TIED = "output.weight"


class Model(NamedTuple):
    """The content of a model directory."""

    encoder: Encoder
    decoder: Decoder
    vocabulary: Vocabulary
    decoding: DecodingConfig
    neighbours: Neighbours | None = None
    card: str = ""  # text of the model card; empty: none


def write_model(folder: Path, model: Model, storage: Storage = "fp32") -> None:
    """Write a model directory; a crash leaves no partial directory.

    Args:
        folder: absent, empty, or a model directory without other files, which is replaced.
        model: what to write.
        storage: of the numbers; fp16 takes half the space.

    Raises:
        ModelError: if the folder holds other files, or cannot be written, or a weight is too large.
    """
    folder = home_path(os.fspath(folder))
    try:
        if folder.is_symlink():
            raise ModelError(
                f"{folder}: is a symbolic link; name the folder itself; nothing was changed"
            )
        if folder.resolve() == Path.cwd():
            raise ModelError(f"{folder}: is the current working directory; name a folder inside it")
        sweep(folder / CARD)
        check(folder, "model", ModelError)
        _write(folder, model, storage)
    except (OSError, ValueError, RuntimeError, SafetensorError, ConfigError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{folder}: cannot be written: {reason}{advice(error)}") from error


def _write(folder: Path, model: Model, storage: Storage) -> None:
    encoder, decoder, vocabulary, decoding, _, card = model
    cnns = [
        CnnConfig.model_validate(asdict(cnn.spec) | {"precision": cnn.precision})
        for cnn in encoder.cnns
    ]
    given = isinstance(encoder, GivenFeatures)
    config = ModelConfig(
        format_version=0,  # set below
        storage=storage,
        encoder=one_or_list(cnns),
        features=FeaturesConfig(source=encoder.source) if given else None,
        mirrored=encoder.mirrored,
        grid=encoder.grid,
        grid_channels=encoder.grid_channels,
        decoder=SizedDecoderConfig(
            vocab_size=decoder.vocab_size,
            feature_size=decoder.feature_size,
            places=decoder.places,
            channels=decoder.channels,
            **decoder.config.model_dump(),
        ),
        tokenizer=vocabulary.tokenizer.name,
        decoding=decoding,
        plugins=plugins_of(decoder.config.cell, [cnn.backbone for cnn in cnns]),
    )
    config = config.model_copy(update={"format_version": config.version()})
    usual = {"tokenizer"} if config.tokenizer == "ptb" else set()  # as older versions wrote it
    usual |= set() if config.features else {"features"}
    usual |= set() if config.plugins else {"plugins"}
    tensors = _tensors(model, storage)
    with whole_folder(folder, "model") as aside:
        save_file(tensors, aside / "model.safetensors", metadata={"format": "pt"})
        text = json.dumps(config.model_dump(exclude=usual), indent=2) + "\n"
        (aside / "config.json").write_text(text, encoding="utf-8")
        vocabulary.save(aside / "vocab.json")
        save_preprocess(aside, [cnn.spec.preprocess for cnn in encoder.cnns])
        if card:
            (aside / CARD).write_text(card, encoding="utf-8")


def _tensors(model: Model, storage: Storage) -> dict[str, Tensor]:
    """Return the content of `model.safetensors`."""
    encoder, decoder, neighbours = model.encoder, model.decoder, model.neighbours
    several = len(encoder.cnns) > 1
    tensors = {
        f"encoder.{number}.{name}" if several else f"encoder.{name}": tensor
        for number, cnn in enumerate(encoder.cnns)
        for name, tensor in cnn.state.items()
    }
    for name, tensor in decoder.state_dict().items():
        if not (name == TIED and decoder.config.tie_weights):
            tensors[f"decoder.{name}"] = tensor.cpu().contiguous()
    if storage == "fp16":
        tensors = {name: _half(name, tensor) for name, tensor in tensors.items()}
    if neighbours:
        stored = {name: tensor.cpu() for name, tensor in neighbours.tensors().items()}
        stored = pack(stored) if storage == "fp16" else stored
        tensors |= {f"neighbours.{name}": tensor.contiguous() for name, tensor in stored.items()}
    return tensors


def _half(name: str, tensor: Tensor) -> Tensor:
    """Round to fp16; a `ValueError` if a number is too large for it."""
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    if not half.isfinite().all():
        largest = f"{tensor.abs().max().item():,.0f}"
        raise ValueError(f"fp16 ends at 65,504, and {name} holds {largest}; save as fp32")
    return half


def read_model(folder: str | Path) -> Model:
    """Read the model directory of a path; see `model_folder`.

    Raises:
        ModelError: if a file is missing, damaged, or does not fit the other files.
    """
    folder = model_folder(folder)
    config = read_config(folder)
    vocabulary = Vocabulary.load(folder / "vocab.json")
    if config.tokenizer != vocabulary.tokenizer.name:
        raise ModelError(
            f"{folder}: config.json states tokenizer {plain(config.tokenizer, 60)}, vocab.json "
            f"{vocabulary.tokenizer.name}; restore both files"
        )
    preprocess = load_preprocess(folder)
    cnns, sizes = config.cnns(), config.decoder
    _note_versions(folder, config)
    _check_size(folder, "CNN(s)", len(cnns), len(preprocess), PREPROCESSOR)
    _check_size(folder, "words", sizes.vocab_size, len(vocabulary), "vocab.json")
    weights = folder / "model.safetensors"
    tensors = _read_weights(weights)
    _check_storage(tensors, config, weights)
    encoder = _load_encoder(config, preprocess, tensors, weights)
    encoder.mirrored = config.mirrored
    found = encoder.sizes
    _check_size(folder, "features", sizes.feature_size, found["feature_size"], encoder.name)
    _check_size(folder, "places", sizes.places, found["places"], encoder.name)
    _check_size(folder, "channels", sizes.channels, found["channels"], encoder.name)
    decoder = _load_decoder(config.decoder, _take(tensors, "decoder"), weights)
    neighbours = None
    if stored := _take(tensors, "neighbours"):
        try:
            stored = unpack(stored) if config.storage == "fp16" else stored
            depths = decoder.num_layers, decoder.num_states  # h alone, or an LSTM's h and c
            widths = [depth * decoder.hidden_size for depth in depths]
            neighbours = Neighbours.read(stored, widths)
        except ValueError as error:
            raise ModelError(f"{weights}: cannot be used: {plain(error)}") from error
    return Model(encoder, decoder, vocabulary, config.decoding, neighbours, read_card(folder))


def _note_versions(folder: Path, config: ModelConfig) -> None:
    """Say where a plug-in has another version than when the model was written."""
    for each in config.plugins:
        found = plugin(each.kind, each.name)
        if found and found.version != each.version:
            print(
                f"note: {plain(folder)}: written with {each.package} {each.version}, installed is "
                f"{found.version}",
                file=sys.stderr,
            )


def read_card(folder: Path) -> str:
    """Return the model card of a model directory; empty if captioner wrote none, or it is damaged.

    A model captions without its card, so nothing about the card is an error.
    """
    path = folder / CARD
    try:
        if not owns(path, "card") or path.stat().st_size > MAX_CARD:
            return ""
        with open(path, encoding="utf-8", newline="", opener=no_stream) as file:
            return file.read()
    except (OSError, ValueError):
        return ""


def _check_size(folder: Path, what: str, expected: int, found: int, where: str) -> None:
    if found != expected:
        raise ModelError(f"{folder}: config.json expects {expected} {what}, {where} has {found}")


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        check_regular(path)
        if mistaken := mistaken_for(read_head(path)):
            raise ValueError(mistaken)
        tensors = load_file(path)
    # A hostile header makes safetensors and torch raise many types.
    except Exception as error:
        raise ModelError(f"{path}: cannot be read: {plain(error)}") from error
    for name, tensor in tensors.items():
        # With one NaN, all captions are equally probable.
        if tensor.is_floating_point() and not _finite(tensor):
            raise ModelError(f"{path}: {plain(name)} holds a number that is not finite")
    return tensors


def _finite(tensor: Tensor) -> bool:
    """Return whether all numbers are finite; the extremes are NaN if any number is."""
    known = tensor if tensor.dtype in DTYPES.values() else tensor.float()
    return not known.numel() or all(torch.isfinite(extreme) for extreme in known.aminmax())


def _check_storage(tensors: dict[str, Tensor], config: ModelConfig, where: Path) -> None:
    """Refuse numbers of another type than `config.json` states."""
    for name, tensor in tensors.items():
        if name.startswith("neighbours.") or not (config.storage and tensor.is_floating_point()):
            continue
        if tensor.dtype != DTYPES[config.storage]:
            raise ModelError(
                f"{where}: does not fit config.json, which states {config.storage}: {plain(name)} "
                f"is {tensor.dtype}; restore both files"
            )


def _take(tensors: dict[str, Tensor], owner: str) -> dict[str, Tensor]:
    """Remove the tensors of one network, and return them without its prefix."""
    names = [name for name in tensors if name.startswith(f"{owner}.")]
    return {name.removeprefix(f"{owner}."): tensors.pop(name) for name in names}


def _load_encoder(
    config: ModelConfig,
    preprocess: list[Preprocess],
    tensors: dict[str, Tensor],
    where: Path,
) -> Encoder:
    cnns, sizes = config.cnns(), config.decoder
    states = {prefix: _take(tensors, prefix) for prefix in cnns}
    for name in tensors:
        if name.startswith("encoder."):
            raise ModelError(
                f"{where}: does not fit config.json, which has no CNN for {plain(name)}"
            )
    if config.features:
        source = plain(config.features.source, 60)
        return GivenFeatures(sizes.feature_size, sizes.places, sizes.channels, source)
    networks = []
    for (prefix, cnn), transform in zip(cnns.items(), preprocess, strict=True):
        spec = EncoderSpec(cnn.backbone, cnn.builder_args, transform, cnn.weights)
        grid = config.grid, config.grid_channels
        networks.append(FrozenEncoder(spec, state_of(states.pop(prefix)), cnn.precision, *grid))
    try:
        return side_by_side(networks)
    except ModelError as error:
        raise ModelError(f"{where.parent}: {error}") from error


def _load_decoder(config: SizedDecoderConfig, state: dict[str, Tensor], where: Path) -> Decoder:
    if config.tie_weights and "embedding.weight" in state:
        state[TIED] = state["embedding.weight"]
    misfit = f"{where}: does not fit config.json"
    if config.num_layers > len(state):
        raise ModelError(f"{misfit}: the file holds fewer than {config.num_layers} layers")
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise ModelError(f"{misfit}: {plain(name)} is {tensor.dtype}, not a float")
    names = ("vocab_size", "feature_size", "places", "channels")
    sizes = {name: getattr(config, name) for name in names}
    settings = DecoderConfig(**config.model_dump(exclude=set(sizes)))
    try:
        # First on "meta", so that wrong sizes in config.json allocate nothing.
        with torch.device("meta"), NoDraws():
            empty = Decoder(settings, **sizes)
        empty.load_state_dict({name: tensor.to("meta") for name, tensor in state.items()})
        decoder = Decoder(settings, **sizes)
        decoder.load_state_dict(state)
    except ConfigError as error:  # of a plug-in's cell
        raise ModelError(f"{where.parent}: {error}") from error
    except RuntimeError as error:
        lines = str(error).splitlines()
        reason = " ".join(line.strip() for line in lines[1:4] or lines)
        raise ModelError(f"{misfit}: {plain(reason)}") from error
    return decoder


def _columns(cnns: Sequence[FrozenEncoder]) -> list[Tensor]:
    """Return where the features of each CNN stand among those of all, int64 (F,) each."""
    sizes = [cnn.feature_size for cnn in cnns]
    numbers = torch.arange(sum(sizes))
    order = side_by_side_features([each[None] for each in numbers.split(sizes)], cnns)[0]
    return list(order.argsort().split(sizes))


def join_models(models: Sequence[tuple[Path, Model]]) -> tuple[Encoder, Ensemble]:
    """Combine two or more models, each with its folder, into one encoder and one decoder.

    A CNN that several models use runs once.

    Raises:
        ModelError: if the vocabularies or the preprocessing of the models differ.
    """
    given = [model.encoder for _, model in models if isinstance(model.encoder, GivenFeatures)]
    if given and len({model.encoder.fingerprint() for _, model in models}) > 1:
        raise ModelError(
            f"an ensemble needs models of the same features; one of them captions features of "
            f"{given[0].wanted} an image"
        )
    (first_folder, first), *others = models
    for folder, model in others:
        for what, same in (
            ("vocabulary", model.vocabulary.words == first.vocabulary.words),
            ("text.tokenizer", model.vocabulary.tokenizer == first.vocabulary.tokenizer),
            ("encoder.mirrored", model.encoder.mirrored == first.encoder.mirrored),
        ):
            if not same:
                raise ModelError(
                    f"{folder}: {what} differs from {first_folder}; an ensemble needs models that "
                    f"were trained with the same {what}"
                )
    if given:
        columns_of_all = torch.arange(first.encoder.feature_size)
        members = [model.decoder for _, model in models]
        return first.encoder, Ensemble(members, [columns_of_all for _ in members])
    cnns = {cnn.fingerprint(): cnn for _, model in models for cnn in model.encoder.cnns}
    encoder = side_by_side(list(cnns.values()))
    columns = dict(zip(cnns, _columns(list(cnns.values())), strict=True))
    inputs = [
        side_by_side_features(
            [columns[cnn.fingerprint()][None] for cnn in model.encoder.cnns], model.encoder.cnns
        )[0]
        for _, model in models
    ]
    encoder.mirrored = first.encoder.mirrored
    return encoder, Ensemble([model.decoder for _, model in models], inputs)


def plugin_label(encoder: Encoder, decoder: Decoder | Ensemble) -> str:
    """Return the plug-ins of a model as a signature shows them; empty without any."""
    members = [*decoder.members] if isinstance(decoder, Ensemble) else [decoder]
    cells = [one.config.cell for one in members if isinstance(one, Decoder)]
    backbones = [cnn.spec.backbone for cnn in encoder.cnns]
    each = [plugin for cell in cells for plugin in plugins_of(cell, backbones)]
    return plugins_in_signature(each)
