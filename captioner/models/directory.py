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
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from captioner import __version__
from captioner.config import DecoderConfig, DecodingConfig, home_path
from captioner.errors import ConfigError, ModelError
from captioner.files import check_regular, no_stream, read_json, room, sweep, whole_folder
from captioner.foreign import excerpt, plain
from captioner.models.decoder import Decoder
from captioner.models.encoder import Encoder, EncoderSpec, FrozenEncoder, Precision
from captioner.models.neighbours import Neighbours
from captioner.models.preprocess import FILE_NAME as PREPROCESSOR
from captioner.models.preprocess import (
    Preprocess,
    load_preprocess,
    one_or_list,
    save_preprocess,
)
from captioner.models.side_by_side import side_by_side
from captioner.models.weights import state_of
from captioner.ownership import check
from captioner.text import Vocabulary

FORMAT_VERSION = 1
TIED = "output.weight"
CNN = tuple[EncoderSpec, str]  # what to build, and its precision


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
    about = [
        {
            "backbone": part.spec.backbone,
            "builder_args": part.spec.builder_args,
            "weights": part.spec.weights,
            "precision": part.precision,
        }
        for part in encoder.parts
    ]
    config = {
        "format_version": FORMAT_VERSION,
        "captioner_version": __version__,
        "encoder": one_or_list(about),
        "mirrored": encoder.mirrored,
        "decoder": {
            "vocab_size": decoder.vocab_size,
            "feature_size": decoder.feature_size,
            **decoder.config.model_dump(),
        },
        "decoding": decoding.model_dump(),
    }
    alone = len(encoder.parts) == 1
    tensors = {
        f"encoder.{name}" if alone else f"encoder.{number}.{name}": tensor
        for number, part in enumerate(encoder.parts)
        for name, tensor in part.state.items()
    }
    for name, tensor in decoder.state_dict().items():
        if not (name == TIED and decoder.config.tie_weights):
            tensors[f"decoder.{name}"] = tensor.cpu().contiguous()
    for name, tensor in (neighbours.tensors() if neighbours else {}).items():
        tensors[f"neighbours.{name}"] = tensor.cpu().contiguous()
    with whole_folder(folder, "model") as aside:
        save_file(tensors, aside / "model.safetensors", metadata={"format": "pt"})
        text = json.dumps(config, indent=2) + "\n"
        (aside / "config.json").write_text(text, encoding="utf-8")
        vocabulary.save(aside / "vocab.json")
        save_preprocess(aside, [part.spec.preprocess for part in encoder.parts])


def read_model(folder: str | Path) -> Parts:
    """Read a model directory.

    Args:
        folder: see `model_folder`.

    Raises:
        ModelError: if a file is missing, damaged, or does not fit the others.
    """
    folder = model_folder(folder)
    path = folder / "config.json"
    config = _read_config(path)
    vocabulary = Vocabulary.load(folder / "vocab.json")
    preprocess = load_preprocess(folder)
    try:
        cnns = _cnns_of(config["encoder"], preprocess)
        mirrored = _is(config.get("mirrored", False))
        decoder_config, sizes = _decoder_of(config["decoder"])
        decoding = DecodingConfig.model_validate(config["decoding"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: cannot be used: {_reason(error)}") from error
    if sizes["vocab_size"] != len(vocabulary):
        raise ModelError(
            f"{folder}: config.json expects {sizes['vocab_size']} words, "
            f"vocab.json has {len(vocabulary)}"
        )
    weights = folder / "model.safetensors"
    states = _read_weights(weights)
    encoder = _load_encoder(cnns, states["encoder"], weights)
    encoder.mirrored = mirrored
    if sizes["feature_size"] != encoder.feature_size:
        raise ModelError(
            f"{folder}: config.json expects {sizes['feature_size']} features, "
            f"{encoder.name} gives {encoder.feature_size}"
        )
    decoder = _load_decoder(decoder_config, sizes, states["decoder"], weights)
    neighbours = None
    if stored := states.get("neighbours"):
        try:
            neighbours = Neighbours.read(stored, decoder.num_states * decoder.hidden_size)
        except ValueError as error:
            raise ModelError(f"{weights}: cannot be used: {plain(error)}") from error
    return Parts(encoder, decoder, vocabulary, decoding, neighbours)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path)
        version = config["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not a captioner model config: {_reason(error)}") from error
    if version != FORMAT_VERSION:
        raise ModelError(
            f"{path}: format version {excerpt(version)}, this captioner reads {FORMAT_VERSION}; "
            f"update captioner or convert the model"
        )
    assert isinstance(config, dict)
    return config


def _cnns_of(about: Any, preprocess: list[Preprocess]) -> dict[str, CNN]:
    """Return what to build of the encoder, by what names it in config.json and in the weights.

    Args:
        about: `encoder` of config.json.
        preprocess: of each CNN.
    """
    each = {"encoder": about}
    if isinstance(about, list):
        each = {f"encoder.{number}": one for number, one in enumerate(about)}
    if len(each) != len(preprocess):
        raise ValueError(f"encoder: {len(each)} CNN(s), {PREPROCESSOR} is of {len(preprocess)}")
    return {
        name: _cnn_of(one, name, seen)
        for (name, one), seen in zip(each.items(), preprocess, strict=True)
    }


def _cnn_of(about: dict[str, Any], where: str, preprocess: Preprocess) -> CNN:
    kinds = {"backbone": str, "builder_args": dict, "weights": str}
    for name, kind in kinds.items():
        if not isinstance(about[name], kind):
            raise ValueError(f"{where}.{name}: not a {kind.__name__}, given {excerpt(about[name])}")
    precision = about.get("precision", "auto")
    if precision not in get_args(Precision):
        raise ValueError(f"{where}.precision: there is no {excerpt(precision)}")
    return EncoderSpec(preprocess=preprocess, **{name: about[name] for name in kinds}), precision


def _decoder_of(about: dict[str, Any]) -> tuple[DecoderConfig, dict[str, int]]:
    """Return the settings of the decoder, each of a kind and in a range that it may have."""
    sizes = {name: about[name] for name in ("vocab_size", "feature_size")}
    for name, size in sizes.items():
        if type(size) is not int:
            raise ValueError(f"decoder.{name}: not a whole number, given {excerpt(size)}")
    rest = {name: value for name, value in about.items() if name not in sizes}
    return DecoderConfig.model_validate(rest), sizes


def _is(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"mirrored: neither true nor false, given {excerpt(value)}")
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing"
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        section = error.title.removesuffix("Config").lower()
        name = ".".join(map(plain, (section, *first["loc"])))
        return f"{name}: {first['msg'].lower()}, given {excerpt(first['input'])}"
    return plain(error)


def _read_weights(path: Path) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each part, by the names they have in it."""
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
        part, _, rest = name.partition(".")
        states.setdefault(part, {})[rest] = tensor
    return states


def _load_encoder(cnns: dict[str, CNN], state: dict[str, Tensor], where: Path) -> Encoder:
    states: dict[str, dict[str, Tensor]] = {name: {} for name in cnns}
    for name, tensor in state.items():
        number, _, rest = name.partition(".")
        whose, within = ("encoder", name) if "encoder" in cnns else (f"encoder.{number}", rest)
        if whose not in states:
            raise ModelError(
                f"{where}: does not fit config.json: encoder.{plain(name)} is of no CNN there"
            )
        states[whose][within] = tensor
    parts = [
        FrozenEncoder(spec, state_of(states.pop(name)), precision)
        for name, (spec, precision) in cnns.items()
    ]
    try:
        return side_by_side(parts)
    except ModelError as error:
        raise ModelError(f"{where.parent}: {error}") from error


def _load_decoder(
    config: DecoderConfig, sizes: dict[str, int], state: dict[str, Tensor], where: Path
) -> Decoder:
    if config.tie_weights and "embedding.weight" in state:
        state[TIED] = state["embedding.weight"]
    misfit = f"{where}: does not fit config.json"
    if config.num_layers > len(state):
        raise ModelError(f"{misfit}: it has no {config.num_layers} layers")
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise ModelError(f"{misfit}: {plain(name)} is {tensor.dtype}")
    try:
        # Without memory first: only what the file really holds is allocated.
        with torch.device("meta"):
            empty = Decoder(config, **sizes)
        empty.load_state_dict({name: tensor.to("meta") for name, tensor in state.items()})
        decoder = Decoder(config, **sizes)
        decoder.load_state_dict(state)
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"{where.parent / 'config.json'}: decoder: {plain(error)}") from error
    except RuntimeError as error:
        lines = str(error).splitlines()
        reason = " ".join(line.strip() for line in lines[1:4] or lines)
        raise ModelError(f"{misfit}: {plain(reason)}") from error
    return decoder
