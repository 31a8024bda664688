"""A captioner as one directory on disk.

    config.json               what to build: encoder, decoder, how to search
    model.safetensors         all weights, `encoder.*` and `decoder.*`
    vocab.json                words and their ids
    preprocessor_config.json  from a picture to the CNN's input

Everything `captioner caption` needs is in there, and nothing in there is ever run or unpickled.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from captioner import __version__
from captioner.config import DecodingConfig
from captioner.errors import ModelError
from captioner.files import whole_folder
from captioner.models.decoder import Decoder
from captioner.models.encoder import EncoderSpec, FrozenEncoder
from captioner.models.preprocess import FILE_NAME as PREPROCESSOR
from captioner.models.preprocess import Preprocess
from captioner.text import Vocabulary

FORMAT_VERSION = 1
TIED = "output.weight"


class Parts(NamedTuple):
    """What a captioner is put together from."""

    encoder: FrozenEncoder
    decoder: Decoder
    vocabulary: Vocabulary
    decoding: DecodingConfig


def model_folder(folder: str | Path) -> Path:
    """Return the model directory meant by a path.

    Args:
        folder: a model directory, or a run directory that holds one as `model/`.

    Raises:
        ModelError: if there is neither.
    """
    path = Path(folder).expanduser()
    for candidate in (path, path / "model"):
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
            with (folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
        except OSError as error:
            raise ModelError(f"{folder / name}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def write_model(folder: Path, parts: Parts) -> None:
    """Write the model directory, whole; one that exists is replaced.

    Args:
        folder: directory to write.
        parts: of the captioner.
    """
    encoder, decoder, vocabulary, decoding = parts
    spec = encoder.spec
    config = {
        "format_version": FORMAT_VERSION,
        "captioner_version": __version__,
        "encoder": {
            "backbone": spec.backbone,
            "builder_args": spec.builder_args,
            "weights": spec.weights,
            "precision": encoder.precision,
        },
        "decoder": decoder.settings,
        "decoding": decoding.model_dump(),
    }
    tensors = {f"encoder.{name}": tensor for name, tensor in encoder.state.items()}
    for name, tensor in decoder.state_dict().items():
        if not (name == TIED and decoder.settings["tie_weights"]):
            tensors[f"decoder.{name}"] = tensor.cpu().contiguous()
    with whole_folder(folder) as aside:
        save_file(tensors, aside / "model.safetensors", metadata={"format": "pt"})
        text = json.dumps(config, indent=2) + "\n"
        (aside / "config.json").write_text(text, encoding="utf-8")
        vocabulary.save(aside / "vocab.json")
        spec.preprocess.save(aside)


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
    preprocess = Preprocess.load(folder)
    weights = folder / "model.safetensors"
    states = _read_weights(weights)
    try:
        about = config["encoder"]
        spec = EncoderSpec(about["backbone"], about["builder_args"], preprocess, about["weights"])
        settings = dict(config["decoder"])
        decoding = DecodingConfig.model_validate(config["decoding"])
        precision = str(about.get("precision", "auto"))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / 'config.json'}: incomplete: {error}") from error
    if settings.get("vocab_size") != len(vocabulary):
        raise ModelError(
            f"{folder}: config.json expects {settings.get('vocab_size')} words, "
            f"vocab.json has {len(vocabulary)}"
        )
    encoder = FrozenEncoder(spec, states["encoder"], precision)
    if settings.get("feature_size") != encoder.feature_size:
        raise ModelError(
            f"{folder}: config.json expects {settings.get('feature_size')} features, "
            f"{spec.backbone} gives {encoder.feature_size}"
        )
    decoder = _load_decoder(settings, states["decoder"], weights)
    return Parts(encoder, decoder, vocabulary, decoding)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        version = config["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not a captioner model config: {error!r}") from error
    if version != FORMAT_VERSION:
        raise ModelError(
            f"{path}: format version {version}, this captioner reads {FORMAT_VERSION}; "
            f"update captioner or convert the model"
        )
    assert isinstance(config, dict)
    return config


def _read_weights(path: Path) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each part, by the names they have in it."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error
    states: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        states.setdefault(part, {})[rest] = tensor
    return states


def _load_decoder(settings: dict[str, Any], state: dict[str, Tensor], where: Path) -> Decoder:
    try:
        decoder = Decoder(**settings)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{where.parent / 'config.json'}: decoder: {error}") from error
    if settings["tie_weights"] and "embedding.weight" in state:
        state[TIED] = state["embedding.weight"]
    try:
        decoder.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise ModelError(f"{where}: does not fit config.json: {' '.join(lines)}") from error
    return decoder
