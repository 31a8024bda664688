"""A captioner as one directory on disk.

    config.json               what to build: encoder, decoder, how to search
    model.safetensors         all weights, `encoder.*` and `decoder.*`; of several CNNs side by
                              side `encoder.0.*`, `encoder.1.*`, ...; `neighbours.*`, where
                              what people wrote about similar images has a say
    vocab.json                words and their ids
    preprocessor_config.json  from a picture to the CNN's input

Everything `captioner caption` needs is in there, and nothing in there is ever run or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from captioner.config import DecoderConfig, DecodingConfig, first_mistake, home_path
from captioner.decoder.decoder import Decoder
from captioner.decoder.ensemble import Ensemble
from captioner.decoder.neighbours import Neighbours
from captioner.encoder.encoder import Encoder, EncoderSpec, FrozenEncoder, Precision
from captioner.encoder.preprocess import FILE_NAME as PREPROCESSOR
from captioner.encoder.preprocess import (
    Preprocess,
    load_preprocess,
    one_or_list,
    save_preprocess,
)
from captioner.encoder.side_by_side import side_by_side
from captioner.encoder.weights import state_of
from captioner.errors import ConfigError, ModelError
from captioner.system.files import check_regular, no_stream, read_json, room, sweep, whole_folder
from captioner.system.foreign import excerpt, plain
from captioner.system.ownership import check
from captioner.system.version import __version__
from captioner.text import Vocabulary

FORMAT_VERSION = 1
TIED = "output.weight"


class CnnConfig(BaseModel):
    """One CNN in `config.json`; fields of later versions are ignored."""

    backbone: str
    builder_args: dict[str, Any]
    weights: str
    precision: Precision = "auto"


class SizedDecoderConfig(DecoderConfig):
    """The decoder in `config.json`: its settings, and the sizes of what it is built for."""

    vocab_size: int
    feature_size: int


class ModelConfig(BaseModel):
    """`config.json`; fields of later versions are ignored."""

    format_version: int = FORMAT_VERSION
    captioner_version: str = __version__
    encoder: Annotated[
        Annotated[CnnConfig, Tag("one")]
        | Annotated[list[CnnConfig], Field(fail_fast=True), Tag("several")],
        Discriminator(lambda given: "several" if isinstance(given, list) else "one"),
    ]
    mirrored: bool = False
    decoder: SizedDecoderConfig
    decoding: DecodingConfig

    def cnns(self) -> dict[str, CnnConfig]:
        """Return the CNNs by what their weights' names begin with."""
        if isinstance(self.encoder, list):
            return {f"encoder.{number}": cnn for number, cnn in enumerate(self.encoder)}
        return {"encoder": self.encoder}


class Parts(NamedTuple):
    """What a captioner is put together from."""

    encoder: Encoder
    decoder: Decoder
    vocabulary: Vocabulary
    decoding: DecodingConfig
    neighbours: Neighbours | None = None


def model_folder(folder: str | Path) -> Path:
    """Return the model directory meant by a path.

    Args:
        folder: a model directory, or a run directory that holds one as `model/`.

    Raises:
        ModelError: if there is neither.
    """
    path = Path(folder).expanduser()
    for candidate in (path, path / "model"):
        if not candidate.exists():
            sweep(candidate)  # a process killed while it replaced it
        if (candidate / "config.json").is_file():
            return candidate
    raise ModelError(f"{path}: no model here: expected config.json and model.safetensors")


def fingerprint(folder: Path) -> str:
    """Return a digest of a model directory's files: another model has another.

    Raises:
        ModelError: if one cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in ("config.json", "model.safetensors", "vocab.json", PREPROCESSOR):
        try:
            with open(folder / name, "rb", opener=no_stream) as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
        except OSError as error:
            raise ModelError(f"{folder / name}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def write_model(folder: Path, parts: Parts) -> None:
    """Write the model directory, whole.

    Args:
        folder: absent, empty, or a model directory, which is replaced, with nothing else in it.
        parts: of the captioner.

    Raises:
        ModelError: if something else stands there, or it cannot be written.
    """
    folder = home_path(os.fspath(folder))
    try:
        if folder.is_symlink():
            raise ModelError(f"{folder}: a link; nothing was changed: name the folder itself")
        if folder.resolve() == Path.cwd():
            raise ModelError(f"{folder}: the folder that is worked in; name one inside it")
        check(folder, "model", ModelError)
        _write(folder, parts)
    except (OSError, ValueError, RuntimeError, SafetensorError, ConfigError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{folder}: cannot be written: {reason}{room(error)}") from error


def _write(folder: Path, parts: Parts) -> None:
    encoder, decoder, vocabulary, decoding, neighbours = parts
    cnns = [
        CnnConfig(
            backbone=cnn.spec.backbone,
            builder_args=cnn.spec.builder_args,
            weights=cnn.spec.weights,
            precision=cnn.precision,
        )
        for cnn in encoder.parts
    ]
    config = ModelConfig(
        encoder=one_or_list(cnns),
        mirrored=encoder.mirrored,
        decoder=SizedDecoderConfig(
            vocab_size=decoder.vocab_size,
            feature_size=decoder.feature_size,
            **decoder.config.model_dump(),
        ),
        decoding=decoding,
    )
    tensors = {
        f"{prefix}.{name}": tensor
        for prefix, cnn in zip(config.cnns(), encoder.parts, strict=True)
        for name, tensor in cnn.state.items()
    }
    for name, tensor in decoder.state_dict().items():
        if not (name == TIED and decoder.config.tie_weights):
            tensors[f"decoder.{name}"] = tensor.cpu().contiguous()
    for name, tensor in (neighbours.tensors() if neighbours else {}).items():
        tensors[f"neighbours.{name}"] = tensor.cpu().contiguous()
    with whole_folder(folder, "model") as aside:
        save_file(tensors, aside / "model.safetensors", metadata={"format": "pt"})
        text = json.dumps(config.model_dump(), indent=2) + "\n"
        (aside / "config.json").write_text(text, encoding="utf-8")
        vocabulary.save(aside / "vocab.json")
        save_preprocess(aside, [cnn.spec.preprocess for cnn in encoder.parts])


def read_model(folder: str | Path) -> Parts:
    """Read a model directory.

    Args:
        folder: see `model_folder`.

    Raises:
        ModelError: if a file is missing, damaged, or does not fit the others.
    """
    folder = model_folder(folder)
    config = _read_config(folder / "config.json")
    vocabulary = Vocabulary.load(folder / "vocab.json")
    preprocess = load_preprocess(folder)
    cnns, sizes = config.cnns(), config.decoder
    if len(cnns) != len(preprocess):
        raise ModelError(
            f"{folder}: config.json has {len(cnns)} CNN(s), {PREPROCESSOR} is of {len(preprocess)}"
        )
    if sizes.vocab_size != len(vocabulary):
        raise ModelError(
            f"{folder}: config.json expects {sizes.vocab_size} words, "
            f"vocab.json has {len(vocabulary)}"
        )
    weights = folder / "model.safetensors"
    states = _read_weights(weights)
    encoder = _load_encoder(cnns, preprocess, states["encoder"], weights)
    encoder.mirrored = config.mirrored
    if sizes.feature_size != encoder.feature_size:
        raise ModelError(
            f"{folder}: config.json expects {sizes.feature_size} features, "
            f"{encoder.name} gives {encoder.feature_size}"
        )
    decoder = _load_decoder(config.decoder, states["decoder"], weights)
    neighbours = None
    if stored := states.get("neighbours"):
        try:
            neighbours = Neighbours.read(stored, decoder.num_states * decoder.hidden_size)
        except ValueError as error:
            raise ModelError(f"{weights}: cannot be used: {plain(error)}") from error
    return Parts(encoder, decoder, vocabulary, config.decoding, neighbours)


def _read_config(path: Path) -> ModelConfig:
    try:
        config = read_json(path)
        version = config["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = "format_version is missing" if isinstance(error, KeyError) else plain(error)
        raise ModelError(f"{path}: not a captioner model config: {reason}") from error
    if version != FORMAT_VERSION:
        raise ModelError(
            f"{path}: format version {excerpt(version)}, this captioner reads {FORMAT_VERSION}; "
            f"update captioner or convert the model"
        )
    try:
        return ModelConfig.model_validate(config, strict=True)
    except ValidationError as error:
        mistake = first_mistake(error, "one", "several")
        raise ModelError(f"{path}: cannot be used: {mistake}") from error


def _read_weights(path: Path) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of encoder, decoder and neighbours, without the prefix of their names."""
    try:
        check_regular(path)
        tensors = load_file(path)
    # The header may claim anything; what does not agree with the file's length is refused by
    # safetensors, what torch has no type for fails in its own ways.
    except Exception as error:
        raise ModelError(f"{path}: cannot be read: {plain(error)}") from error
    states: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}}
    for name, tensor in tensors.items():
        # No caption is more probable than another where one number is none.
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise ModelError(f"{path}: {plain(name)} holds what is no finite number")
        owner, _, rest = name.partition(".")
        states.setdefault(owner, {})[rest] = tensor
    return states


def _load_encoder(
    cnns: dict[str, CnnConfig],
    preprocess: list[Preprocess],
    state: dict[str, Tensor],
    where: Path,
) -> Encoder:
    states: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in cnns}
    for name, tensor in state.items():
        number, _, rest = name.partition(".")
        prefix, within = ("encoder", name) if "encoder" in cnns else (f"encoder.{number}", rest)
        if prefix not in states:
            raise ModelError(
                f"{where}: does not fit config.json: encoder.{plain(name)} is of no CNN there"
            )
        states[prefix][within] = tensor
    networks = []
    for (prefix, cnn), transform in zip(cnns.items(), preprocess, strict=True):
        spec = EncoderSpec(cnn.backbone, cnn.builder_args, transform, cnn.weights)
        networks.append(FrozenEncoder(spec, state_of(states.pop(prefix)), cnn.precision))
    try:
        return side_by_side(networks)
    except ModelError as error:
        raise ModelError(f"{where.parent}: {error}") from error


def _load_decoder(config: SizedDecoderConfig, state: dict[str, Tensor], where: Path) -> Decoder:
    if config.tie_weights and "embedding.weight" in state:
        state[TIED] = state["embedding.weight"]
    misfit = f"{where}: does not fit config.json"
    if config.num_layers > len(state):
        raise ModelError(f"{misfit}: it has no {config.num_layers} layers")
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise ModelError(f"{misfit}: {plain(name)} is {tensor.dtype}")
    sizes = {"vocab_size": config.vocab_size, "feature_size": config.feature_size}
    settings = DecoderConfig(**config.model_dump(exclude=set(sizes)))
    try:
        # Without memory first: only what the file really holds is allocated.
        with torch.device("meta"):
            empty = Decoder(settings, **sizes)
        empty.load_state_dict({name: tensor.to("meta") for name, tensor in state.items()})
        decoder = Decoder(settings, **sizes)
        decoder.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).splitlines()
        reason = " ".join(line.strip() for line in lines[1:4] or lines)
        raise ModelError(f"{misfit}: {plain(reason)}") from error
    return decoder


def join_models(models: Sequence[tuple[Path, Parts]]) -> tuple[Encoder, Ensemble]:
    """Make one encoder and one decoder of several models.

    A CNN that several models share runs once.

    Args:
        models: where each came from, and its parts; two or more.

    Raises:
        ModelError: if their vocabularies differ, or they do not see the same pixels.
    """
    (first, about), *others = models
    for folder, parts in others:
        if parts.vocabulary.words != about.vocabulary.words:
            raise ModelError(
                f"{folder}: has other words than {first}; an ensemble needs models that were "
                f"trained on the same captions"
            )
        if parts.encoder.mirrored != about.encoder.mirrored:
            raise ModelError(
                f"{folder}: only one of it and {first} was trained with encoder.flip; an ensemble "
                f"needs models that see pictures alike"
            )
    networks = [[(cnn.fingerprint(), cnn) for cnn in each.encoder.parts] for _, each in models]
    cnns: dict[str, FrozenEncoder] = {}
    places: dict[str, Tensor] = {}
    end = 0
    for key, cnn in chain.from_iterable(networks):
        if key not in cnns:
            cnns[key] = cnn
            places[key] = torch.arange(end, end + cnn.feature_size)
            end += cnn.feature_size
    columns = [torch.cat([places[key] for key, _ in own]) for own in networks]
    encoder = side_by_side(list(cnns.values()))
    encoder.mirrored = about.encoder.mirrored
    return encoder, Ensemble([parts.decoder for _, parts in models], columns)
