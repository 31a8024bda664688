"""The public class `Captioner`: frozen CNN, decoder and vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from math import isqrt
from pathlib import Path
from types import NoneType
from typing import Literal, Self, TypeVar, Unpack, cast, overload

import torch
from torch import Tensor

from captioner.config import MAX_CAPTIONS, DecodingConfig, DecodingOverrides, changed_decoding
from captioner.decoder.captions import attend, to_captions
from captioner.decoder.decoder import SPECIAL_IDS, Decoder
from captioner.decoder.ensemble import Ensemble
from captioner.decoder.likelihood import embeddings, log_likelihoods
from captioner.decoder.neighbours import Neighbours
from captioner.decoder.stepping import Stepping
from captioner.encoder.encoder import Encoder, dtype_of
from captioner.encoder.given_features import GivenFeatures
from captioner.errors import (
    ConfigError,
    ImageError,
    ModelError,
    check_names,
    checked_names,
    must_be,
    within_memory,
)
from captioner.explanation.explained import (
    METHODS,
    Explanation,
    Method,
    spelled,
    token_ids_of,
)
from captioner.explanation.trace import Trace, check_units, trace
from captioner.images.accept import ImageLike, is_one, iterate, snapshot, to_picture
from captioner.model_config import FORMAT_VERSIONS
from captioner.model_dir import Model, join_models, read_model, write_model
from captioner.pipeline import Gather, Pixels, run
from captioner.search import Extensions, Hypotheses, SpecialIds, beam_search, sample
from captioner.steering import steered
from captioner.system.batches import batched, in_turn
from captioner.system.devices import choose_device
from captioner.system.foreign import excerpt
from captioner.text import Caption, Vocabulary

T = TypeVar("T")
R = TypeVar("R")

BATCH_SIZE = 128
SEARCH_BATCH = 256  # stored features that evaluation, doctor and dev scores search together
MIN_ROUNDED_SIZE = 256  # hidden units; below it, rounding the matrices saves no time

FEATURES = "the image's features are not finite"
STATES = "the decoder's states are not finite"
SCORES = "the words' probabilities are not finite"
MAPS = "the words' maps are not finite"
OVERFLOW = "the weights overflow; try precision fp32, restore the weights, or train the model again"


@checked_names
class Captioner:
    """Write captions for images.

    Examples:
        >>> captioner = Captioner.load("runs/scenes")       # doctest: +SKIP
        >>> captioner.caption("image.jpg")                  # doctest: +SKIP
        'a small red circle above a large blue star'
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder | Ensemble,
        vocabulary: Vocabulary,
        decoding: DecodingConfig | None = None,
        neighbours: Neighbours | None = None,
        card: str = "",
    ):
        """Build a captioner from its components.

        Args:
            encoder: one or several frozen CNNs.
            decoder: built for the encoder's feature size and the vocabulary's size.
            vocabulary: the word of each token id.
            decoding: default search settings.
            neighbours: captions of the training images, required if `decoding.neighbours` > 0.
            card: text of the model card, which `save` writes as `README.md`; empty: none.

        Raises:
            ConfigError: if an argument is of another type.
        """
        must_be("encoder", encoder, Encoder)
        must_be("decoder", decoder, Decoder, Ensemble)
        must_be("vocabulary", vocabulary, Vocabulary)
        must_be("decoding", decoding, DecodingConfig, NoneType)
        must_be("neighbours", neighbours, Neighbours, NoneType)
        must_be("card", card, str)
        self.encoder = encoder
        self.decoder = decoder.eval()
        self.vocabulary = vocabulary
        self.decoding = decoding or DecodingConfig()
        self.neighbours = neighbours
        self.card = card
        self.device = torch.device("cpu")
        self.name = "the model"
        self._steps: dict[torch.dtype, Stepping] = {}

    @property
    def num_models(self) -> int:
        """Number of models in the ensemble; 1 without an ensemble."""
        return len(self.decoder.members) if isinstance(self.decoder, Ensemble) else 1

    def map_size(self) -> int:
        """Return the places S in a row and in a column of an attention map; 0: no such map.

        A model without attention has none, and places of features that another program made lie
        nowhere.

        Raises:
            ModelError: if the models of an ensemble have different numbers of places.
        """
        if isinstance(self.encoder, GivenFeatures):
            return 0
        members = [*self.decoder.members] if isinstance(self.decoder, Ensemble) else [self.decoder]
        places = {member.places for member in members if member.attention is not None}
        if len(places) > 1:
            sizes = " and ".join(str(isqrt(each)) for each in sorted(places))
            raise ModelError(
                f"{self.name} have different encoder.grid, {sizes}: there is no common attention "
                f"map; caption with models of one encoder.grid, or without maps"
            )
        return isqrt(places.pop()) if places else 0

    def to(self, device: str | torch.device) -> Self:
        """Move the model to a device.

        Args:
            device: such as "cpu", "cuda:1" or "mps"; "auto" takes cuda, else mps, else cpu.

        Returns:
            This captioner.

        Raises:
            ConfigError: if the device is not available.
        """
        self.device = choose_device(device)
        self.encoder.to_device(self.device)
        self.decoder.to(self.device)
        self._steps.clear()
        self.neighbours = self.neighbours and self.neighbours.to(self.device)
        return self

    @within_memory("to encode")
    def encode(self, images: ImageLike | Iterable[ImageLike]) -> Tensor:
        """Compute the features of images.

        Args:
            images: B images, or one; see `caption`.

        Returns:
            Features, float32 (B, F), on the captioner's device.

        Raises:
            ImageError: if an image cannot be read, or a feature is NaN or infinite.
        """
        many = [images] if is_one(images) else iterate(cast(Iterable[ImageLike], images))
        each = [self.encoder.preprocess.pixels(to_picture(image)) for image in many]
        if not each:
            return torch.empty(0, self.encoder.feature_size, device=self.device)
        pixels = torch.stack(each)
        features = self.encoder.see(pixels)
        _raise_first(self._errors((FEATURES, features.isfinite().all(1))))
        return features

    def _errors(self, *checks: tuple[str, Tensor]) -> list[ImageError | None]:
        """Return the error of each image; None if it passes all checks, each bool (B,)."""
        reasons = [reason for reason, _ in checks]
        rows = torch.stack([passed for _, passed in checks], dim=1).tolist()  # one device wait
        return [
            ImageError(
                f"{self.name} computes NaN or infinity for this image: "
                f"{reasons[row.index(False)]}; {OVERFLOW}",
                kind="not_a_number",
            )
            if False in row
            else None
            for row in rows
        ]

    @within_memory("to caption")
    def search(
        self,
        features: Tensor,
        options: DecodingConfig | None = None,
        *,
        n_best: int = 1,
        words: bool = False,
        alternatives: int = 0,
        maps: bool = False,
    ) -> list[list[Caption]]:
        """Search for the captions of images, given their features.

        Args:
            features: (B, F).
            options: search settings, such as `settings(beam_size=5)`; None: the model's own.
            n_best: captions per image.
            words: fill `Caption.words`.
            alternatives: fill `Caption.words` with so many alternatives for each word.
            maps: fill `Caption.words` with attention, which runs the decoder once more over the
                captions. The weights are those of float32; an ensemble's are the mean of its
                models' that have attention. Votes of neighbours do not change them.

        Returns:
            Up to n_best captions for each of the B images, best first.

        Raises:
            ConfigError: if the options do not fit the model or n_best, or a number is out of range.
            ImageError: if the model computes NaN or infinity for an image.
            ModelError: with maps, if the models of an ensemble have different numbers of places.
        """
        results = self.search_each(
            features, options, n_best=n_best, words=words, alternatives=alternatives, maps=maps
        )
        _raise_first(results)
        return cast(list[list[Caption]], results)

    @torch.inference_mode()
    def search_each(
        self,
        features: Tensor,
        options: DecodingConfig | None = None,
        *,
        n_best: int = 1,
        words: bool = False,
        alternatives: int = 0,
        maps: bool = False,
    ) -> list[list[Caption] | ImageError]:
        """Search as `search` does, but return the error of an image instead of raising it.

        Finite weights may still overflow. An overflow in one image does not change the captions
        of the other images.

        Raises:
            ConfigError: if the options do not fit the model or n_best, or a number is out of range.
            ModelError: with maps, if the models of an ensemble have different numbers of places.
        """
        must_be("options", options, DecodingConfig, NoneType)
        must_be("words", words, bool)
        must_be("maps", maps, bool)
        _check_alternatives(alternatives)
        map_size = self.map_size() if maps else 0
        options = options or self.settings(n_best=n_best)
        best, errors = self._best(features, options, n_best, alternatives)
        captions = to_captions(
            best,
            self.vocabulary,
            words=words or maps or alternatives > 0,
            alternatives=alternatives,
            weights=attend(self.decoder, features.to(self.device), best.token_ids)
            if map_size
            else None,
        )
        return [error or best for error, best in zip(errors, captions, strict=True)]

    @torch.inference_mode()
    def _best(
        self,
        features: Tensor,
        options: DecodingConfig,
        n_best: int,
        alternatives: int,
        watch: Callable[[Extensions], None] | None = None,
    ) -> tuple[Hypotheses, list[ImageError | None]]:
        """Search for n_best hypotheses from features, (B, F); return also each image's error."""
        ids = self._fitting_ids(options, n_best)
        size = self.encoder.feature_size
        if not isinstance(features, Tensor) or features.ndim != 2 or features.shape[1] != size:
            raise ConfigError(f"features: must be a tensor (B, {size}), as `encode` returns")
        features = features.to(self.device)
        voters = self._voters(options)
        hidden, hypotheses = self._hypotheses(
            features, options, ids, options.beam_size if voters else n_best, alternatives, watch
        )
        # Before the votes, which may turn NaN scores into numbers.
        errors = self._errors(
            (FEATURES, features.isfinite().all(1)),
            (STATES, hidden.isfinite().all(2).all(0)),
            (SCORES, (hypotheses.log_probs > -torch.inf).any(1)),
        )
        if voters:
            hypotheses = voters.rank(hypotheses, hidden, options.neighbours)
        return Hypotheses(*(column[:, :n_best] for column in hypotheses)), errors

    def trace(
        self,
        image: ImageLike,
        *,
        n_best: int = 1,
        alternatives: int = 5,
        units: int = 64,
        **overrides: Unpack[DecodingOverrides],
    ) -> Trace:
        """Caption one image and keep how: what the search kept and cut, and the hidden states.

        The search is that of `caption`. The hidden states are computed once more, in float64.

        Args:
            image: one image; see `caption`.
            n_best: captions, best first.
            alternatives: alternatives for each word of the captions; sampling: also the candidates
                of each step.
            units: units of the hidden state to keep, at most; those that move most.
            **overrides: search settings to change, such as beam_size=5; see `settings`.

        Raises:
            ImageError: if the image cannot be read, or the model computes NaN or infinity for it.
            ConfigError: if a setting is unknown or out of range.
        """
        check_units(units)
        _check_alternatives(alternatives)
        options = self.settings(n_best=n_best, **overrides)
        features = self.encode([image])
        return self.trace_features(
            features, options, n_best=n_best, alternatives=alternatives, units=units
        )

    @within_memory("to trace")
    def trace_features(
        self,
        features: Tensor,
        options: DecodingConfig | None = None,
        *,
        n_best: int = 1,
        alternatives: int = 5,
        units: int = 64,
        maps: bool = False,
    ) -> Trace:
        """Trace as `trace` does, given the image's features.

        Args:
            features: of one image, (1, F), as `encode` returns.
            options: search settings; None: the model's own.
            n_best: see `trace`.
            alternatives: see `trace`.
            units: see `trace`.
            maps: fill the words of the captions with attention; see `search`.

        Raises:
            ImageError: if the model computes NaN or infinity for the image.
            ConfigError: if there is not one image, or an argument is out of range.
            ModelError: with maps, if the models of an ensemble have different numbers of places.
        """
        must_be("options", options, DecodingConfig, NoneType)
        must_be("maps", maps, bool)
        check_units(units)
        _check_alternatives(alternatives)
        looks = maps and self.map_size() > 0
        options, watched = options or self.settings(n_best=n_best), list[Extensions]()
        ranked = n_best if self._voters(options) is None else options.beam_size
        features = self._features_of_one(features)
        self._fitting_ids(options, n_best)
        found, errors = self._best(features, options, ranked, alternatives, watched.append)
        _raise_first(errors)
        return trace(
            *(self.decoder, self.vocabulary, features, options, found, watched),
            n_best=n_best,
            alternatives=alternatives,
            units=units,
            weights=attend(self.decoder, features, found.token_ids) if looks else None,
        )

    def _voters(self, options: DecodingConfig) -> Neighbours | None:
        """Return the neighbours that rank the captions of a search, if they do."""
        return self.neighbours if options.search == "beam" and options.neighbours else None

    def _hypotheses(
        self,
        features: Tensor,
        options: DecodingConfig,
        ids: SpecialIds,
        n_best: int,
        alternatives: int,
        watch: Callable[[Extensions], None] | None,
    ) -> tuple[Tensor, Hypotheses]:
        """Search from features, (B, F); return also the initial hidden states, (L, B, H)."""
        # One more than the alternatives: the word itself is among the most probable.
        choices = min(alternatives + 1, len(self.vocabulary)) if alternatives else 0
        precision = options.precision
        if precision == "auto" and self.decoder.hidden_size < MIN_ROUNDED_SIZE:
            precision = "fp32"
        hidden, step = self._step(dtype_of(precision, self.device)).start(features)
        if options.search == "beam":
            return hidden, beam_search(step, hidden, ids, options, n_best, choices, watch)
        generator = torch.Generator(self.device).manual_seed(options.seed)
        return hidden, sample(step, hidden, ids, options, n_best, generator, choices)

    def _step(self, dtype: torch.dtype) -> Stepping:
        """Return what starts a search, cached per dtype: the weights never change."""
        if dtype not in self._steps:
            self._steps[dtype] = self.decoder.stepper(dtype)
        return self._steps[dtype]

    def settings(
        self, *, n_best: int = 1, **overrides: Unpack[DecodingOverrides]
    ) -> DecodingConfig:
        """Return the model's search settings, with some of them changed.

        Args:
            n_best: captions per image; the default beam size grows to n_best.
            **overrides: the settings to change, such as beam_size=5.

        Raises:
            ConfigError: if a setting is unknown, out of range, has no effect on this search, or
                cannot be fulfilled.
        """
        options = changed_decoding(self.decoding, n_best, overrides)
        self._fitting_ids(options, n_best)
        return options

    def _fitting_ids(self, options: DecodingConfig, n_best: int) -> SpecialIds:
        """Return the ids that steer a search; a ConfigError if it does not fit the model."""
        sampling = options.search == "sample"
        most = MAX_CAPTIONS if sampling else options.beam_size
        if not isinstance(n_best, int) or not 1 <= n_best <= most:
            limit = f"{most:,}" if sampling else f"the beam size ({most})"
            raise ConfigError(f"n_best: must be 1 to {limit}, given {excerpt(n_best, 60)}")
        if options.neighbours and self.neighbours is None:
            which = "the first model" if self.num_models > 1 else "this model"
            raise ConfigError(
                f"decoding.neighbours: {which} stores no training captions; set "
                f"decoding.neighbours to 0, or train a model with decoding.neighbours above 0"
            )
        return steered(SPECIAL_IDS, options, self.vocabulary)

    @overload  # a string is also an iterable of strings: mypy takes the first overload that fits
    def caption(  # type: ignore[overload-overlap]
        self, images: ImageLike, **overrides: Unpack[DecodingOverrides]
    ) -> str: ...
    @overload
    def caption(
        self,
        images: Iterable[ImageLike],
        *,
        batch_size: int = BATCH_SIZE,
        on_error: Literal["raise"] = "raise",
        **overrides: Unpack[DecodingOverrides],
    ) -> Iterator[str]: ...
    @overload
    def caption(
        self,
        images: Iterable[ImageLike],
        *,
        batch_size: int = BATCH_SIZE,
        on_error: Literal["skip"],
        **overrides: Unpack[DecodingOverrides],
    ) -> Iterator[str | None]: ...
    def caption(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        batch_size: int = BATCH_SIZE,
        on_error: Literal["raise", "skip"] = "raise",
        **overrides: Unpack[DecodingOverrides],
    ) -> str | Iterator[str] | Iterator[str | None]:
        """Caption one image, or many images lazily.

        Threads read and decode the next images in the background. `captioner.caption_files` also
        returns image names, n-best lists and the reason of each failure.

        Args:
            images: one image or an iterable of images, which is read a few batches ahead. An
                image is a path, encoded bytes, an open binary file, a Pillow image, or an array
                or tensor (H, W), (H, W, 3) or (3, H, W), uint8 0..255 or float 0..1.
            batch_size: images per pass. Rounding in bf16 depends on the batch size: another
                batch size changes a caption in rare cases.
            on_error: only for an iterable; "skip" yields None for an image that is unreadable or
                for which the model computes NaN or infinity.
            **overrides: search settings to change, such as beam_size=5; see `settings`.

        Returns:
            The best caption of one image, or an iterator over the best caption of each image.

        Raises:
            ImageError: if an image cannot be read, or the model computes NaN or infinity for the
                image. An iterator first yields the captions of the earlier images.
            ConfigError: at once, if a setting is unknown or out of range.
        """
        if "n_best" in overrides:
            raise ConfigError(
                "n_best: `caption` returns the best caption only; for several, use "
                "`captioner.caption_files` or `search(encode(images), n_best=...)`"
            )
        known = ("batch_size", "on_error", *DecodingConfig.model_fields)
        check_names("decoding.", overrides.keys() - {"sample"}, known)
        must_be("on_error", on_error, str)
        if on_error not in ("raise", "skip"):
            raise ConfigError(f"on_error: must be 'raise' or 'skip', given {excerpt(on_error)}")
        options = self.settings(**overrides)
        if is_one(images):
            return self.search(self.encode(images), options)[0][0].text
        batches = in_turn(map(snapshot, iterate(cast(Iterable[ImageLike], images))), batch_size)
        return self._captions(batches, on_error == "skip", options)

    def captions_of(
        self,
        batches: Iterable[Iterable[T]],
        read: Callable[[T], tuple[R, Pixels]],
        options: DecodingConfig,
        *,
        n_best: int = 1,
        words: bool = False,
        maps: bool = False,
        needed: Callable[[list[R]], bool] = lambda results: True,  # noqa: ARG005
        gather: Gather[R] | None = None,
        num_workers: int | None = None,
    ) -> Iterator[list[tuple[R, list[Caption] | ImageError | None]]]:
        """Caption batch by batch, while threads read the next batches; see `pipeline.run`.

        With `words` or `maps`, `Caption.words` is filled; see `search`.

        Yields:
            For each image of a batch, the result of `read` and the captions, best first. The
            captions are None without pixels, and an error if the model computes NaN or infinity.
        """
        return run(
            batches,
            read,
            self.encoder.see,
            partial(self.search_each, options=options, n_best=n_best, words=words, maps=maps),
            device=self.device,
            images_per_pass=self.encoder.images_per_pass,
            needed=needed,
            gather=gather,
            num_workers=num_workers,
        )

    def _captions(
        self,
        batches: Iterable[Iterable[ImageLike | ImageError]],
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

    @overload  # a string is also an iterable of strings: mypy takes the first overload that fits
    def score(  # type: ignore[overload-overlap]
        self, images: ImageLike, captions: str, *, per_token: bool = True
    ) -> float: ...
    @overload
    def score(
        self,
        images: ImageLike | Iterable[ImageLike],
        captions: str | Iterable[str],
        *,
        per_token: bool = True,
    ) -> Tensor: ...
    @within_memory("to score")
    @torch.inference_mode()
    def score(
        self,
        images: ImageLike | Iterable[ImageLike],
        captions: str | Iterable[str],
        *,
        per_token: bool = True,
    ) -> float | Tensor:
        """Compute the log-likelihood of captions given images.

        Use it to filter data, and to rank captions for an image or images for a caption. An unknown
        word scores as <unk>, which is more probable than a rare word. If captions may contain many
        unknown words, check `vocabulary.coverage`.

        Args:
            images: one image or many; see `caption`.
            captions: one caption or many, as plain text.
            per_token: True: the mean over words and end token; False: the sum, the logarithm of
                the caption's probability.

        Returns:
            Log-likelihood in nats, at most 0. One image and one caption: a float. Otherwise a
            float32 tensor on the CPU: (captions,), (images,), or (images, captions).

        Raises:
            ImageError: if an image cannot be read, or the model computes NaN or infinity for it.
            ConfigError: if a caption is not a string.
        """
        must_be("per_token", per_token, bool)
        if is_one(images):
            row = self.score([images], captions, per_token=per_token)[0]
            return row.item() if isinstance(captions, str) else row
        many = cast(Iterable[ImageLike], images)
        if isinstance(captions, str):
            return self.score(many, [captions], per_token=per_token)[:, 0]
        token_ids = self._token_ids(captions)
        scores = [torch.empty(0, len(token_ids))]
        for batch in batched(map(to_picture, iterate(many)), BATCH_SIZE):
            hidden, step = self._step(torch.float32).start(self.encode(batch))
            log_probs = log_likelihoods(step, hidden, token_ids)
            states = hidden.isfinite().all(2).all(0)
            _raise_first(self._errors((STATES, states), (SCORES, ~log_probs.isnan().any(1))))
            scores.append(log_probs.cpu())
        lengths = torch.tensor([len(ids) + 1 if per_token else 1 for ids in token_ids])
        return torch.cat(scores) / lengths

    @within_memory("to explain")
    def explain(
        self,
        image: ImageLike,
        caption: str | Caption | None = None,
        options: DecodingConfig | None = None,
        *,
        method: Method = "gradient",
        alternatives: int = 4,
    ) -> Explanation:
        """Compute where each word of a caption came from.

        Args:
            image: one image; see `caption`.
            caption: text, with or without the words of a search; None: the best caption. A word
                that the model does not know is explained as <unk>.
            options: search settings of the best caption; None: the model's own.
            method: "gradient" leads each word's log-probability back through time and the CNN's
                last feature map, and compares with the average training image. "occlusion" covers
                one place after the other; it knows nothing of the model and takes longer. Votes of
                neighbours choose the caption, and have no part in its maps.
            alternatives: for each word.

        Raises:
            ImageError: if the image cannot be read, or the model computes NaN or infinity for it.
            ConfigError: if the caption holds no word or too many, or an argument is out of range.
            ModelError: if the CNN sees the image as a single place.
        """
        must_be("caption", caption, str, Caption, NoneType)
        _check_method(method)
        _check_alternatives(alternatives)
        picture, preprocess = to_picture(image), self.encoder.preprocess
        pixels = preprocess.pixels(picture)
        features, looks = self.encoder.see(pixels[None]), self.map_size() > 0
        _raise_first(self._errors((FEATURES, features.isfinite().all(1))))
        if isinstance(caption, str):
            caption = Caption(caption, 0.0, 0.0, finished=True)
        if caption is None:
            [[caption]] = self.search(features, options, alternatives=alternatives, maps=looks)
        token_ids = token_ids_of(caption, self.vocabulary).to(self.device)
        # A search may spell a word in other pieces than the tokeniser.
        if len(caption.words) != len(token_ids):
            parts = self.decoder, features, token_ids, self.vocabulary, alternatives
            caption = spelled(*parts, looks=looks)
        maps = self.map_words(pixels, features, caption, method=method)
        return Explanation(caption, maps, method, pixels, preprocess.visible(*picture.size))

    @within_memory("to explain")
    def map_words(
        self, pixels: Tensor, features: Tensor, caption: Caption, *, method: Method = "gradient"
    ) -> Tensor:
        """Compute the maps of a caption's words as `explain` does, given the image's features.

        Args:
            pixels: what the CNN sees, uint8 (3, S, S).
            features: of the image, (1, F), as `encode` returns.
            caption: of a search.
            method: see `explain`.

        Returns:
            `Explanation.maps`, float32 (T, h, w) on the CPU, of the pieces that the tokeniser
            makes of the text. A search may write other pieces, of another number.

        Raises:
            ImageError: if the model computes NaN or infinity for the image.
            ConfigError: if the caption holds no word or too many, or an argument is of another
                form.
            ModelError: if the CNN sees the image as a single place.
        """
        must_be("caption", caption, Caption)
        _check_method(method)
        side = self.encoder.preprocess.crop_size
        is_tensor = isinstance(pixels, Tensor) and pixels.dtype == torch.uint8
        if not is_tensor or pixels.shape != (3, side, side):
            raise ConfigError(f"pixels: must be a tensor, uint8 (3, {side}, {side})")
        features = self._features_of_one(features)
        token_ids = token_ids_of(caption, self.vocabulary).to(self.device)
        parts = self.encoder, self.decoder, pixels[None], token_ids
        maps = METHODS[method](*parts, features=features)
        _raise_first(self._errors((MAPS, maps.isfinite().all()[None])))
        return maps.cpu()

    def _features_of_one(self, features: Tensor) -> Tensor:
        """Return the features of one image, on the device; a ConfigError if they are none."""
        size = self.encoder.feature_size
        if not isinstance(features, Tensor) or features.shape != (1, size):
            raise ConfigError(f"features: must be a tensor (1, {size}), as `encode` returns")
        return features.to(self.device)

    @within_memory("to embed captions")
    def embed(self, captions: str | Iterable[str]) -> Tensor:
        """Compute a vector for each caption: the hidden state after the caption's last word.

        The decoder starts from the average training image.

        Args:
            captions: one caption or many, as plain text.

        Returns:
            float32 on the CPU: (L * H,) for one caption, (captions, L * H) for many.

        Raises:
            ModelError: if the model is an ensemble, or computes NaN or infinity for a caption.
            ConfigError: if a caption is not a string.
        """
        if isinstance(captions, str):
            return self.embed([captions])[0]
        decoder = self.single_decoder("used for embeddings; load one of its models alone")
        states = embeddings(decoder, self._token_ids(captions)).cpu()
        if not states.isfinite().all():
            raise ModelError(
                f"{self.name} computes NaN or infinity for a caption: {STATES}; {OVERFLOW}"
            )
        return states

    def single_decoder(self, use: str) -> Decoder:
        """Return the decoder; `use` ends the error message "an ensemble cannot be ...".

        Raises:
            ModelError: if this is an ensemble.
        """
        if not isinstance(self.decoder, Decoder):
            raise ModelError(f"an ensemble cannot be {use}")
        return self.decoder

    def _token_ids(self, captions: Iterable[str]) -> list[list[int]]:
        texts = list(captions) if isinstance(captions, Iterable) else [captions]
        for text in texts:
            if not isinstance(text, str):
                raise ConfigError(f"captions: must be text, given {excerpt(text)}")
        return [self.vocabulary.encode_text(text) for text in texts]

    def save(self, folder: str | Path, storage: Literal["fp32", "fp16"] = "fp32") -> None:
        """Write the model directory.

        Args:
            folder: the directory to write; a leading `~` is the home directory. It may be absent
                or empty. A directory that holds a model and nothing else is replaced.
            storage: number format of the file; fp16, with neighbours in 8 bits, takes half the
                space. The loaded model computes as it does without it. Its captions differ in
                rare cases. Captioner 0.1 does not read fp16.

        Raises:
            ModelError: if the directory holds other files or cannot be written, if a weight is too
                large for fp16, or if this is an ensemble.
            ConfigError: if the storage is unknown.
        """
        must_be("folder", folder, str, Path)
        must_be("storage", storage, str)
        if storage not in FORMAT_VERSIONS:
            raise ConfigError(f"storage: must be 'fp32' or 'fp16', given {excerpt(storage)}")
        decoder = self.single_decoder("saved; the directories of its models exist already")
        parts = self.vocabulary, self.decoding, self.neighbours, self.card
        write_model(Path(folder), Model(self.encoder, decoder, *parts), storage)

    @classmethod
    def load(
        cls, folder: str | Path | Sequence[str | Path], device: str | torch.device = "auto"
    ) -> Self:
        """Load a model, or several models as an ensemble.

        Args:
            folder: a model directory, a run directory with `model/`, the name of a bundled model,
                "photos" or "scenes", or "hub:OWNER/NAME@REVISION", a model on the Hugging Face
                Hub. Several form an ensemble: it uses the mean of the models' word distributions.
            device: see `to`.

        Raises:
            ModelError: if a file is missing, damaged, or does not fit the other files.
            ConfigError: if the device is not available.
        """
        must_be("folder", folder, str, Path, Sequence, NoneType)
        folders = [folder] if isinstance(folder, str | Path) else list(folder or ())
        for each in folders:
            must_be("folder", each, str, Path)
        if not folders:
            raise ModelError("no model directory given; give at least one")
        with within_memory("to load the model"):
            models = [(Path(each), read_model(each)) for each in folders]
            captioner = cls(*models[0][1])
            if len(models) > 1:
                captioner.encoder, captioner.decoder = join_models(models)
            captioner.name = " and ".join(f"model {folder}" for folder, _ in models)
            return captioner.to(device)


def _check_alternatives(alternatives: int) -> None:
    """Raise a ConfigError if there can be no such number of alternatives."""
    if type(alternatives) is not int or not 0 <= alternatives <= MAX_CAPTIONS:
        raise ConfigError(
            f"alternatives: must be 0 to {MAX_CAPTIONS:,}, given {excerpt(alternatives, 60)}"
        )


def _check_method(method: str) -> None:
    """Raise a ConfigError if there is no such way to make maps."""
    must_be("method", method, str)
    if method not in METHODS:
        names = " or ".join(map(repr, METHODS))
        raise ConfigError(f"method: must be {names}, given {excerpt(method, 60)}")


def _raise_first(results: Sequence[object]) -> None:
    """Raise the first error among the results of several images."""
    for number, error in enumerate(results, 1):
        if isinstance(error, ImageError):
            where = f"image {number} of {len(results)}: " if len(results) > 1 else ""
            raise ImageError(f"{where}{error}", kind=error.kind)
