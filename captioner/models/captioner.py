"""The captioner: frozen CNN, decoder and vocabulary together, as one directory on disk.

    config.json               what to build: encoder, decoder, how to search
    model.safetensors         all weights, `encoder.*` and `decoder.*`
    vocab.json                words and their ids
    preprocessor_config.json  from a picture to the CNN's input

Everything `captioner caption` needs is in there, and nothing in there is ever run or unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeAlias, overload

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from captioner import __version__
from captioner.config import DecodingConfig
from captioner.errors import ConfigError, ModelError
from captioner.files import whole_folder
from captioner.images import read_image, to_rgb
from captioner.models.decoder import Decoder
from captioner.models.encoder import EncoderSpec, FrozenEncoder
from captioner.models.preprocess import Preprocess
from captioner.search import Hypotheses, beam_search, sample
from captioner.text import Vocabulary, detokenize

ImageLike: TypeAlias = "str | Path | bytes | Image.Image | np.ndarray[Any, Any] | Tensor"
FORMAT_VERSION = 1
TIED = "output.weight"


@dataclass(frozen=True, slots=True)
class Caption:
    """One caption of one image.

    Attributes:
        text: the caption, lower case.
        log_prob: natural logarithm of its probability, end token included.
        score: what it was ranked by, log_prob / length ** length_penalty.
        finished: False if the longest length came before an end token.
    """

    text: str
    log_prob: float
    score: float
    finished: bool


class Captioner:
    """Images in, captions out.

    >>> captioner = Captioner.load("runs/scenes")           # doctest: +SKIP
    >>> captioner.caption("image.jpg")                      # doctest: +SKIP
    'a small red circle above a large blue star'
    """

    def __init__(
        self,
        encoder: FrozenEncoder,
        decoder: Decoder,
        vocabulary: Vocabulary,
        decoding: DecodingConfig | None = None,
    ):
        """Put the parts together.

        Args:
            encoder: the frozen CNN.
            decoder: built for the encoder's feature size and the vocabulary's size.
            vocabulary: words of the decoder's ids.
            decoding: how to search when a call does not say.
        """
        self.encoder = encoder
        self.decoder = decoder.eval()
        self.vocabulary = vocabulary
        self.decoding = decoding or DecodingConfig()
        self.device = torch.device("cpu")

    def to(self, device: str | torch.device) -> Self:
        """Move to a device: "cpu", "cuda", "cuda:1", "mps" or "auto" (the best there is).

        Raises:
            ModelError: if the device is not there.
        """
        self.device = choose_device(device)
        self.encoder.to_device(self.device)
        self.decoder.to(self.device)
        return self

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Turn RGB pictures into features.

        Args:
            images: B pictures.

        Returns:
            features, float32 (B, F), on the captioner's device.
        """
        pixels = torch.stack([self.encoder.spec.preprocess.pixels(image) for image in images])
        features: Tensor = self.encoder(pixels)
        return features

    @torch.inference_mode()
    def search(self, features: Tensor, *, n_best: int = 1, **decoding: Any) -> list[list[Caption]]:
        """Write captions for features.

        Args:
            features: (B, F).
            n_best: captions per image; at most the beam size.
            **decoding: overrides of the model's own `DecodingConfig`, such as beam_size=5.

        Returns:
            For each of the B images, up to n_best captions, best first.

        Raises:
            ConfigError: if a setting is unknown or impossible.
        """
        settings = self.settings(n_best=n_best, **decoding)
        words = self.vocabulary
        hidden = self.decoder.init_hidden(features.to(self.device))
        ids: dict[str, Any] = {
            "bos_id": words.bos_id,
            "eos_id": words.eos_id,
            "suppress_ids": (words.pad_id, words.bos_id, words.unk_id),
            "max_length": settings.max_length,
        }
        if settings.sample:
            found = sample(
                self.decoder.step,
                hidden,
                temperature=settings.temperature,
                top_k=settings.top_k,
                top_p=settings.top_p,
                n_samples=n_best,
                generator=torch.Generator(self.device).manual_seed(settings.seed),
                **ids,
            )
        else:
            found = beam_search(
                self.decoder.step,
                hidden,
                beam_size=settings.beam_size,
                length_penalty=settings.length_penalty,
                no_repeat_ngram_size=settings.no_repeat_ngram_size,
                n_best=n_best,
                **ids,
            )
        return self._read(found)

    def _read(self, found: Hypotheses) -> list[list[Caption]]:
        """Turn ids into captions."""
        rows = zip(
            found.token_ids.tolist(),
            found.log_probs.tolist(),
            found.scores.tolist(),
            found.finished.tolist(),
            strict=True,
        )
        return [
            [
                Caption(detokenize(self.vocabulary.decode(ids)), log_prob, score, finished)
                for ids, log_prob, score, finished in zip(*row, strict=True)
                if log_prob > -np.inf  # fewer hypotheses exist than were asked for
            ]
            for row in rows
        ]

    def settings(self, *, n_best: int = 1, **decoding: Any) -> DecodingConfig:
        """Return the model's decoding settings with some of them changed.

        Raises:
            ConfigError: if a setting is unknown or impossible.
        """
        try:
            settings = DecodingConfig.model_validate(self.decoding.model_dump() | decoding)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise ConfigError(
                f"decoding.{name}: {first['msg'].lower()}, given {first['input']!r}"
            ) from error
        if n_best < 1 or (n_best > settings.beam_size and not settings.sample):
            raise ConfigError(
                f"n_best: must be 1 to the beam size ({settings.beam_size}), given {n_best}"
            )
        return settings

    @overload
    def caption(self, images: ImageLike, **decoding: Any) -> str: ...
    @overload
    def caption(self, images: Iterable[ImageLike], **decoding: Any) -> Iterator[str]: ...
    def caption(
        self, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 32, **decoding: Any
    ) -> str | Iterator[str]:
        """Caption one image, or any number of them lazily.

        Args:
            images: a path, encoded bytes, a Pillow image, an array or tensor of pixels
                (H, W), (H, W, 3) or (3, H, W), uint8 0..255 or float 0..1; or an iterable of
                these, which is read only as captions are asked for.
            batch_size: images per pass.
            **decoding: overrides of the model's own settings, such as beam_size=5.

        Returns:
            The best caption of the one image, or an iterator over those of many.

        Raises:
            ImageError: if an image cannot be read.
            ConfigError: if a setting is unknown or impossible.
        """
        if isinstance(images, str | Path | bytes | Image.Image | np.ndarray | Tensor):
            return next(self._captions([images], 1, decoding))
        return self._captions(images, batch_size, decoding)

    def _captions(
        self, images: Iterable[ImageLike], batch_size: int, decoding: dict[str, Any]
    ) -> Iterator[str]:
        source = iter(images)
        while batch := [_to_picture(image) for image in islice(source, batch_size)]:
            for captions in self.search(self.encode(batch), **decoding):
                yield captions[0].text

    def save(self, folder: str | Path) -> None:
        """Write the model directory, whole; one that exists is replaced.

        Args:
            folder: directory to write.
        """
        spec = self.encoder.spec
        config = {
            "format_version": FORMAT_VERSION,
            "captioner_version": __version__,
            "encoder": {
                "backbone": spec.backbone,
                "builder_args": spec.builder_args,
                "weights": spec.weights,
                "precision": self.encoder.precision,
            },
            "decoder": self.decoder.settings,
            "decoding": self.decoding.model_dump(),
        }
        tensors = {f"encoder.{name}": tensor for name, tensor in self.encoder.state.items()}
        for name, tensor in self.decoder.state_dict().items():
            if not (name == TIED and self.decoder.settings["tie_weights"]):
                tensors[f"decoder.{name}"] = tensor.cpu().contiguous()
        with whole_folder(Path(folder)) as aside:
            save_file(tensors, aside / "model.safetensors", metadata={"format": "pt"})
            text = json.dumps(config, indent=2) + "\n"
            (aside / "config.json").write_text(text, encoding="utf-8")
            self.vocabulary.save(aside / "vocab.json")
            spec.preprocess.save(aside)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "auto") -> Self:
        """Read a model directory.

        Args:
            folder: a model directory, or a run directory that holds one as `model/`.
            device: see `to`.

        Raises:
            ModelError: if a file is missing, damaged, or does not fit the others.
        """
        folder = model_folder(folder)
        config = _read_config(folder / "config.json")
        vocabulary = Vocabulary.load(folder / "vocab.json")
        preprocess = Preprocess.load(folder)
        weights = folder / "model.safetensors"
        try:
            tensors = load_file(weights)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{weights}: cannot be read: {error}") from error
        states: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            states.setdefault(part, {})[rest] = tensor
        try:
            about = config["encoder"]
            spec = EncoderSpec(
                about["backbone"], about["builder_args"], preprocess, about["weights"]
            )
            decoder_settings = dict(config["decoder"])
            decoding = DecodingConfig.model_validate(config["decoding"])
            precision = str(about.get("precision", "auto"))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{folder / 'config.json'}: incomplete: {error}") from error
        if decoder_settings.get("vocab_size") != len(vocabulary):
            raise ModelError(
                f"{folder}: config.json expects {decoder_settings.get('vocab_size')} words, "
                f"vocab.json has {len(vocabulary)}"
            )
        encoder = FrozenEncoder(spec, states["encoder"], precision)
        if decoder_settings.get("feature_size") != encoder.feature_size:
            raise ModelError(
                f"{folder}: config.json expects {decoder_settings.get('feature_size')} features, "
                f"{spec.backbone} gives {encoder.feature_size}"
            )
        decoder = _load_decoder(decoder_settings, states["decoder"], weights)
        return cls(encoder, decoder, vocabulary, decoding).to(device)


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


def choose_device(device: str | torch.device) -> torch.device:
    """Return a device that is really there.

    Args:
        device: torch's name of one, or "auto": cuda, else mps, else cpu.

    Raises:
        ModelError: if it is unknown or absent.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"--device {device}: not available here ({reason})") from error
    return chosen


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


def _to_picture(image: ImageLike) -> Image.Image:
    """Return RGB from whatever people hold an image in."""
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, bytes):
        return read_image(image)
    if isinstance(image, Image.Image):
        return to_rgb(image)
    array = image.numpy(force=True) if isinstance(image, Tensor) else np.asarray(image)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.dtype.kind == "f":
        array = np.rint(array.clip(0, 1) * 255).astype(np.uint8)
    return to_rgb(Image.fromarray(array.squeeze()))
