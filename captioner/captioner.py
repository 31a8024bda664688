"""The captioner: frozen CNN, decoder and vocabulary together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Self, TypeVar, Unpack, cast, overload

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from captioner.config import DecodingConfig, DecodingOverrides
from captioner.decoder.decoder import Decoder, SearchDecoder
from captioner.decoder.ensemble import Ensemble
from captioner.decoder.likelihood import embeddings, log_likelihoods
from captioner.decoder.neighbours import Neighbours
from captioner.encoder.encoder import Encoder, dtype_of
from captioner.errors import ConfigError, ImageError, ModelError, within_memory
from captioner.images.accept import ImageLike, as_it_is, each, is_one, to_picture
from captioner.model_dir import Parts, join_models, read_model, write_model
from captioner.pipeline import run
from captioner.search import Hypotheses, Step, beam_search, sample
from captioner.system.batches import batched
from captioner.system.foreign import excerpt
from captioner.text import Vocabulary, detokenize, tokenize

T = TypeVar("T")
R = TypeVar("R")

BATCH = 128  # images that are captioned together
DEVICES = ("cpu", "cuda", "mps", "xpu")
MOST = 1000  # captions of an image
LARGE = 256  # units of a layer whose matrices are worth rounding

# What may be no number
FEATURES = "the image's features are not finite"
STATES = "the decoder's states are not finite"
SCORES = "the words' probabilities are not finite"
OVERFLOW = (
    "its weights overflow (precision fp32 bears the most); restore them, or train the model again"
)


@dataclass(frozen=True, slots=True)
class Caption:
    """One caption of one image.

    Attributes:
        text: the caption, lower case.
        log_prob: natural logarithm of its probability, end token included.
        score: what it was ranked by, log_prob / length ** length_penalty, plus the
            neighbours' votes; of drawn captions, log_prob.
        finished: False if the longest length came before an end token.
    """

    text: str
    log_prob: float
    score: float
    finished: bool


class Captioner:
    """Images in, captions out.

    Examples:
        >>> captioner = Captioner.load("runs/scenes")       # doctest: +SKIP
        >>> captioner.caption("image.jpg")                  # doctest: +SKIP
        'a small red circle above a large blue star'
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: SearchDecoder,
        vocabulary: Vocabulary,
        decoding: DecodingConfig | None = None,
        neighbours: Neighbours | None = None,
    ):
        """Put the parts together.

        Args:
            encoder: the frozen CNN, or several side by side.
            decoder: built for the encoder's feature size and the vocabulary's size.
            vocabulary: words of the decoder's ids.
            decoding: how to search when a call does not say.
            neighbours: what people wrote about the training images, for `decoding.neighbours`.
        """
        self.encoder = encoder
        self.decoder = decoder.eval()
        self.vocabulary = vocabulary
        self.decoding = decoding or DecodingConfig()
        self.neighbours = neighbours
        self.device = torch.device("cpu")
        self.name = "the model"
        self._steps: dict[torch.dtype, Step] = {}

    @property
    def num_models(self) -> int:
        """How many models write together."""
        return len(self.decoder.members) if isinstance(self.decoder, Ensemble) else 1

    def to(self, device: str | torch.device) -> Self:
        """Move to a device: "cpu", "cuda", "cuda:1", "mps" or "auto" (the best there is).

        Raises:
            ConfigError: if the device is not there.
        """
        self.device = choose_device(device)
        self.encoder.to_device(self.device)
        self.decoder.to(self.device)
        self._steps.clear()
        self.neighbours = self.neighbours and self.neighbours.to(self.device)
        return self

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Turn RGB pictures into features.

        Args:
            images: B pictures.

        Returns:
            features, float32 (B, F), on the captioner's device.

        Raises:
            ImageError: if the model gives no numbers for a picture.
        """
        pixels = torch.stack([self.encoder.preprocess.pixels(image) for image in images])
        features = self.encoder.see(pixels)
        self._refuse(~features.isfinite().all(1), FEATURES)
        return features

    def _no_numbers(self, what: str) -> ImageError:
        return ImageError(
            f"{self.name} gives no numbers for this picture: {what}; {OVERFLOW}",
            kind="not_a_number",
        )

    def _refuse(self, broken: Tensor, what: str) -> None:
        """Raise an error where the model gives no numbers for one of the pictures, bool (B,)."""
        if broken.any():
            error = self._no_numbers(what)
            where = f"picture {int(broken.nonzero()[0]) + 1} of {len(broken)}: "
            raise ImageError((where if len(broken) > 1 else "") + str(error), kind=error.kind)

    def search(
        self, features: Tensor, options: DecodingConfig | None = None, *, n_best: int = 1
    ) -> list[list[Caption]]:
        """Write captions for features.

        Args:
            features: (B, F).
            options: how to search, such as `settings(beam_size=5)`; None: as the model does.
            n_best: captions per image.

        Returns:
            For each of the B images, up to n_best captions, best first.

        Raises:
            ConfigError: if the options do not fit the model or n_best.
            ImageError: if the model gives no numbers for an image; `search_each` tells which.
        """
        found = self.search_each(features, options, n_best=n_best)
        for number, captions in enumerate(found, 1):
            if isinstance(captions, ImageError):
                where = f"picture {number} of {len(found)}: " if len(found) > 1 else ""
                raise ImageError(f"{where}{captions}", kind=captions.kind)
        return cast(list[list[Caption]], found)

    @torch.inference_mode()
    def search_each(
        self, features: Tensor, options: DecodingConfig | None = None, *, n_best: int = 1
    ) -> list[list[Caption] | ImageError]:
        """Write captions for features; an image that the model gives no numbers for has an error.

        Weights that are finite may still overflow. The captions of the other images are what they
        would be in any other company.

        Args:
            features: see `search`.
            options: see `search`.
            n_best: see `search`.

        Returns:
            For each of the B images, up to n_best captions, best first; or what is wrong.

        Raises:
            ConfigError: if the options do not fit the model or n_best.
        """
        options = options or self.settings(n_best=n_best)
        self._check_fit(options, n_best)
        size = self.encoder.feature_size
        if not isinstance(features, Tensor) or features.ndim != 2 or features.shape[1] != size:
            raise ConfigError(f"features: must be a tensor (B, {size}), as `encode` returns")
        features = features.to(self.device)
        hidden = self.decoder.init_hidden(features)
        votes = options.search == "beam" and options.neighbours
        voters = self.neighbours if votes else None
        found = self._hypotheses(hidden, options, options.beam_size if voters else n_best)
        # Checked before anything is ranked by them.
        sound = [
            (FEATURES, features.isfinite().all(1)),
            (STATES, hidden.isfinite().all(2).all(0)),
            (SCORES, (found.log_probs > -torch.inf).any(1)),
        ]
        if voters:
            found = voters.rank(found, hidden, options.neighbours)
        return self._checked(self._read(found, n_best), sound)

    def _hypotheses(self, hidden: Tensor, options: DecodingConfig, n_best: int) -> Hypotheses:
        """Search from initial hidden states, (L, B, H)."""
        words = self.vocabulary
        step = self._step(self._dtype(options.precision))
        if options.search == "sample":
            return sample(
                step,
                hidden,
                bos_id=words.bos_id,
                eos_id=words.eos_id,
                suppress_ids=words.unwritable,
                max_length=options.max_length,
                temperature=options.temperature,
                top_k=options.top_k,
                top_p=options.top_p,
                n_samples=n_best,
                generator=torch.Generator(self.device).manual_seed(options.seed),
            )
        return beam_search(
            step,
            hidden,
            bos_id=words.bos_id,
            eos_id=words.eos_id,
            suppress_ids=words.unwritable,
            max_length=options.max_length,
            beam_size=options.beam_size,
            length_penalty=options.length_penalty,
            no_repeat_ngram_size=options.no_repeat_ngram_size,
            n_best=n_best,
        )

    def _checked(
        self, captions: list[list[Caption]], sound: list[tuple[str, Tensor]]
    ) -> list[list[Caption] | ImageError]:
        """Put an error in the place of captions that come from what is no number."""
        names = [name for name, _ in sound]
        flags = torch.stack([flag for _, flag in sound], dim=1).tolist()  # one wait for the device
        return [
            best if all(each) else self._no_numbers(names[each.index(False)])
            for best, each in zip(captions, flags, strict=True)
        ]

    def _step(self, dtype: torch.dtype) -> Step:
        """Return the decoder's step, laid out once for each dtype: its weights stay as they are."""
        if dtype not in self._steps:
            self._steps[dtype] = self.decoder.stepper(dtype)
        return self._steps[dtype]

    def _dtype(self, precision: str) -> torch.dtype:
        """Return the dtype of a search's matrices; small ones gain nothing from being rounded."""
        small = self.decoder.hidden_size < LARGE
        return dtype_of("fp32" if precision == "auto" and small else precision, self.device)

    def _read(self, found: Hypotheses, n_best: int) -> list[list[Caption]]:
        """Turn ids into captions, of the n best of each image."""
        columns = (found.token_ids, found.log_probs, found.scores, found.finished)
        captions: list[list[Caption]] = []
        for row in zip(*(column[:, :n_best].tolist() for column in columns), strict=True):
            captions.append([])
            for ids, log_prob, score, finished in zip(*row, strict=True):
                if log_prob == -np.inf:
                    continue  # fewer hypotheses exist than were asked for
                text = detokenize(self.vocabulary.decode(ids))
                captions[-1].append(Caption(text, log_prob, score, finished))
        return captions

    def settings(
        self, *, n_best: int = 1, **overrides: Unpack[DecodingOverrides]
    ) -> DecodingConfig:
        """Return how to search: the model's own settings, with some of them changed.

        Args:
            n_best: captions that will be asked for; the model's own beam grows to as many.
            **overrides: the settings to change, such as beam_size=5.

        Raises:
            ConfigError: if a setting is unknown, impossible, or has no effect on this search.
        """
        try:
            options = DecodingConfig.model_validate(self.decoding.model_dump() | overrides)
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "value_error":
                raise ConfigError(str(first["ctx"]["error"])) from error
            name = ".".join(map(str, first["loc"]))
            raise ConfigError(
                f"decoding.{name}: {first['msg'].lower()}, given {excerpt(first['input'], 60)}"
            ) from error
        for name in sorted(overrides.keys() & DecodingConfig.idle[options.search]):
            other = "beam" if options.search == "sample" else "sample"
            raise ConfigError(
                f"decoding.{name}: needs decoding.search {other} (--search {other}); has no effect "
                f"with {options.search}"
            )
        if options.search == "beam" and "beam_size" not in overrides and isinstance(n_best, int):
            beam_size = max(options.beam_size, min(n_best, MOST))
            options = options.model_copy(update={"beam_size": beam_size})
        self._check_fit(options, n_best)
        return options

    def _check_fit(self, options: DecodingConfig, n_best: int) -> None:
        """Refuse a search that this model cannot do, or that finds fewer captions than wanted."""
        drawn = options.search == "sample"
        if not isinstance(n_best, int) or not 1 <= n_best <= (MOST if drawn else options.beam_size):
            limit = f"{MOST:,}" if drawn else f"the beam size ({options.beam_size})"
            raise ConfigError(f"n_best: must be 1 to {limit}, given {excerpt(n_best, 60)}")
        if options.neighbours and self.neighbours is None:
            which = "the first of the models" if self.num_models > 1 else "this model"
            raise ConfigError(
                f"decoding.neighbours: {which} keeps nothing of what people wrote; choose 0, or "
                f"train it with decoding.neighbours above 0"
            )

    @overload  # a string is an iterable of strings too: the first to fit decides
    def caption(  # type: ignore[overload-overlap]
        self, images: ImageLike, **overrides: Unpack[DecodingOverrides]
    ) -> str: ...
    @overload
    def caption(
        self,
        images: Iterable[ImageLike],
        *,
        batch_size: int = BATCH,
        on_error: Literal["raise"] = "raise",
        **overrides: Unpack[DecodingOverrides],
    ) -> Iterator[str]: ...
    @overload
    def caption(
        self,
        images: Iterable[ImageLike],
        *,
        batch_size: int = BATCH,
        on_error: Literal["skip"],
        **overrides: Unpack[DecodingOverrides],
    ) -> Iterator[str | None]: ...
    def caption(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        batch_size: int = BATCH,
        on_error: Literal["raise", "skip"] = "raise",
        **overrides: Unpack[DecodingOverrides],
    ) -> str | Iterator[str] | Iterator[str | None]:
        """Caption one image, or any number of them lazily.

        Of many images the next are read and decoded while some are captioned, on all cores. For
        reasons of failures, n-best lists and names there is `inference.local.caption_files`.

        Args:
            images: a path, encoded bytes, a file opened for them, a Pillow image, an array or
                tensor of pixels (H, W), (H, W, 3) or (3, H, W), uint8 0..255 or float 0..1; or an
                iterable of these, which is read a few batches ahead of the captions asked for.
            batch_size: of many, images per pass. Sums in bf16 depend in their last digits on how
                many rows there are: an image may be captioned otherwise, rarely, in other company.
            on_error: "skip" gives None for one of many images that cannot be read, or that the
                model gives no numbers for.
            **overrides: settings of the search to change, such as beam_size=5; see `settings`.

        Returns:
            The best caption of the one image, or an iterator over those of many.

        Raises:
            ImageError: if an image cannot be read, or the model gives no numbers for it; of many,
                after the captions of those before, as is anything that their iterator raises.
            ConfigError: at once, if a setting is unknown or impossible.
        """
        if "n_best" in overrides:
            raise ConfigError(
                "n_best: `caption` gives the best alone; `inference.local.caption_files` and "
                "`search(encode(pictures), n_best=...)` give several"
            )
        if on_error not in ("raise", "skip"):
            raise ConfigError(f"on_error: must be 'raise' or 'skip', given {excerpt(on_error)}")
        options = self.settings(**overrides)
        if is_one(images):
            with within_memory("to caption"):
                return self.search(self.encode([to_picture(images)]), options)[0][0].text
        batches = batched(map(as_it_is, each(cast(Iterable[ImageLike], images))), batch_size)
        return self._captions(batches, on_error == "skip", options)

    def captions_of(
        self,
        batches: Iterable[Iterable[T]],
        read: Callable[[T], tuple[R, Tensor | None]],
        options: DecodingConfig,
        *,
        n_best: int = 1,
        needed: Callable[[list[R]], bool] = lambda results: True,  # noqa: ARG005
        num_workers: int | None = None,
    ) -> Iterator[list[tuple[R, list[Caption] | ImageError | None]]]:
        """Caption batch by batch; threads read the next batches meanwhile.

        Args:
            batches: see `pipeline.run`.
            read: see `pipeline.run`.
            options: how to search.
            n_best: captions per image.
            needed: see `pipeline.run`.
            num_workers: see `pipeline.run`.

        Yields:
            For each image of a batch what `read` returned, and its captions, best first; None
            where there were no pixels, an error where the model gives no numbers.
        """
        return run(
            batches,
            read,
            self.encoder.see,
            partial(self.search_each, options=options, n_best=n_best),
            device=self.device,
            images_per_pass=self.encoder.images_per_pass,
            needed=needed,
            num_workers=num_workers,
        )

    def _captions(
        self,
        batches: Iterable[Sequence[ImageLike | ImageError]],
        skip: bool,
        options: DecodingConfig,
    ) -> Iterator[str | None]:
        def read(image: ImageLike | ImageError) -> tuple[ImageError | None, Tensor | None]:
            if isinstance(image, ImageError):
                return image, None
            try:
                return None, self.encoder.preprocess.pixels(to_picture(image))
            except ImageError as error:
                return error, None

        for batch in self.captions_of(batches, read, options):
            for unread, captions in batch:
                error = captions if isinstance(captions, ImageError) else unread
                if error and not skip:
                    raise error
                yield captions[0].text if isinstance(captions, list) else None

    @overload  # a string is an iterable of strings too: the first to fit decides
    def score(  # type: ignore[overload-overlap]
        self, images: ImageLike, captions: str, *, per_token: bool = True
    ) -> float: ...
    @overload
    def score(
        self, images: ImageLike, captions: Iterable[str], *, per_token: bool = True
    ) -> Tensor: ...
    @overload
    def score(
        self, images: Iterable[ImageLike], captions: str | Iterable[str], *, per_token: bool = True
    ) -> Tensor: ...
    @torch.inference_mode()
    def score(
        self,
        images: ImageLike | Iterable[ImageLike],
        captions: str | Iterable[str],
        *,
        per_token: bool = True,
    ) -> float | Tensor:
        """Say how probable images make captions: to filter data, or to rank either for the other.

        Words the model does not know count as its unknown word, which is likelier than any one
        rare word: mind `vocabulary.coverage` where captions hold many.

        Args:
            images: one image or many, as for `caption`.
            captions: one caption or many, as people write them.
            per_token: the mean over a caption's words and its end token; False: their sum, the
                logarithm of the caption's probability.

        Returns:
            Log-likelihood in nats, 0 at most: a float for one image and one caption; float32 on
            the processor for more: (captions,), (images,), or (images, captions) of all pairs.

        Raises:
            ImageError: if an image cannot be read, or the model gives no numbers for it.
        """
        if is_one(images):
            of_one = self.score([images], captions, per_token=per_token)[0]
            return of_one.item() if isinstance(captions, str) else of_one
        many = cast(Iterable[ImageLike], images)
        if isinstance(captions, str):
            return self.score(many, [captions], per_token=per_token)[:, 0]
        texts = self._token_ids(captions)
        scores = [torch.empty(0, len(texts))]
        for batch in batched(map(to_picture, each(many)), BATCH):
            hidden = self.decoder.init_hidden(self.encode(batch))
            self._refuse(~hidden.isfinite().all(2).all(0), STATES)
            likely = log_likelihoods(self._step(torch.float32), hidden, texts).cpu()
            self._refuse(likely.isnan().any(1), SCORES)
            scores.append(likely)
        tokens = torch.tensor([len(ids) + 1 if per_token else 1 for ids in texts])
        return torch.cat(scores) / tokens

    def embed(self, captions: str | Iterable[str]) -> Tensor:
        """Turn texts into vectors: the hidden state they leave behind after the average image.

        Args:
            captions: one caption or many, as people write them.

        Returns:
            float32 on the processor, (L * H,) of one caption, (captions, L * H) of many.

        Raises:
            ModelError: if the model gives no numbers for a caption.
        """
        if isinstance(captions, str):
            return self.embed([captions])[0]
        decoder = self.single_decoder("asked for embeddings; ask one of its models")
        states = embeddings(decoder, self._token_ids(captions)).cpu()
        if not states.isfinite().all():
            raise ModelError(f"{self.name} gives no numbers for a caption: {STATES}; {OVERFLOW}")
        return states

    def single_decoder(self, purpose: str) -> Decoder:
        """Return the decoder of a captioner that is one model.

        Args:
            purpose: what an ensemble cannot be, for the error.

        Raises:
            ModelError: if this is an ensemble.
        """
        if not isinstance(self.decoder, Decoder):
            raise ModelError(f"an ensemble cannot be {purpose}")
        return self.decoder

    def _token_ids(self, captions: Iterable[str]) -> list[list[int]]:
        texts = list(captions) if isinstance(captions, Iterable) else [captions]
        for text in texts:
            if not isinstance(text, str):
                raise ConfigError(f"captions: must be text, given {excerpt(text)}")
        return [self.vocabulary.encode(tokenize(text)) for text in texts]

    def save(self, folder: str | Path) -> None:
        """Write the model directory, whole.

        Args:
            folder: directory to write, `~` for the home; absent, empty, or a model directory,
                which is replaced, with nothing else in it.

        Raises:
            ModelError: if something else stands there, or it cannot be written.
        """
        decoder = self.single_decoder("saved; its models are there already")
        parts = Parts(self.encoder, decoder, self.vocabulary, self.decoding, self.neighbours)
        write_model(Path(folder), parts)

    @classmethod
    def load(
        cls, folder: str | Path | Sequence[str | Path], device: str | torch.device = "auto"
    ) -> Self:
        """Read a model directory, or several, which then write captions together.

        Args:
            folder: a model directory, or a run directory that holds one as `model/`; of several,
                the average of their distributions decides on every word.
            device: see `to`.

        Raises:
            ModelError: if a file is missing, damaged, or does not fit the others.
            ConfigError: if the device is not there.
        """
        folders = [folder] if isinstance(folder, str | Path) else list(folder or ())
        if not folders:
            raise ModelError("no model directory is named; name one, or several")
        with within_memory("to load the model"):
            models = [(Path(each), read_model(each)) for each in folders]
            captioner = cls(*models[0][1])
            if len(models) > 1:
                captioner.encoder, captioner.decoder = join_models(models)
            captioner.name = " and ".join(f"model {folder}" for folder, _ in models)
            return captioner.to(device)


def choose_device(device: str | torch.device) -> torch.device:
    """Return a device that is really there.

    Args:
        device: torch's name of one, or "auto": cuda, else mps, else cpu.

    Raises:
        ConfigError: if it is unknown or absent.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        if chosen.type not in DEVICES:  # some, such as meta, hold no numbers; others need a module
            raise ValueError(f"{chosen.type} computes nothing here")
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        known = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        known += ["mps"] if torch.backends.mps.is_available() else []
        raise ConfigError(
            f"--device {device!s:.60}: not available here; choose auto or one of {', '.join(known)}"
        ) from error
    return torch.device("cpu") if chosen.type == "cpu" else chosen
