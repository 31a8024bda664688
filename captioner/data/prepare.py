"""Prepares the data of a run: data set, vocabulary, features and tables."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from captioner.config import Config, DataConfig, resolve_path
from captioner.data.caption_table import CaptionTable
from captioner.data.dataset import Dataset, Example
from captioner.data.feature_store import FeatureStore
from captioner.data.fill import fill_store
from captioner.data.load import load_dataset
from captioner.data.summary import describe
from captioner.encoder.encoder import Encoder, FrozenEncoder
from captioner.encoder.side_by_side import side_by_side
from captioner.errors import DataError
from captioner.system.foreign import plain
from captioner.system.world import World
from captioner.text import Vocabulary, tokenize

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SplitTable:
    """The data to caption and score a split.

    Attributes:
        examples: N images with their captions.
        features: fp16 (N, F).
        references: for each image, the tokens of each caption.
    """

    examples: tuple[Example, ...]
    features: Tensor
    references: list[list[list[str]]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """The data of a run.

    Attributes:
        vocabulary: of the training captions.
        train: captions and features.
        references: for each training image, all tokens of each caption.
        dev: split that selects the best epoch.
        data: digests of the images and captions of train and dev, by name.
    """

    vocabulary: Vocabulary
    train: CaptionTable
    references: list[list[list[str]]]
    dev: SplitTable
    data: dict[str, str]


def open_dataset(config: DataConfig) -> Dataset:
    """Load the data set of a config.

    Raises:
        DataError: if the data set cannot be read.
    """
    return load_dataset(
        resolve_path(config.root),
        format=config.format,
        images=resolve_path(config.images) if config.images else None,
        restval=config.restval,
        image_column=config.image_column,
        caption_column=config.caption_column,
        split_column=config.split_column,
        holdout=config.holdout,
        strict=config.strict,
    )


def open_encoder(config: Config, device: torch.device) -> Encoder:
    """Build the frozen CNN or CNNs of a config.

    Raises:
        ModelError: if a backbone or its weights are unavailable, or the CNNs need other inputs.
    """
    settings = config.encoder
    cnns: list[FrozenEncoder] = []
    for cnn in settings.cnns:
        frozen = FrozenEncoder.create(
            cnn.backbone,
            cnn.weights,
            builder_args=cnn.builder_args,
            image_size=settings.image_size,
            # With an explicit image_size, all CNNs use the interpolation of the first.
            interpolation=cnns[0].preprocess.interpolation if cnns else None,
            precision=settings.precision,
        )
        cnns.append(frozen)
    encoder = side_by_side(cnns).to_device(device)
    encoder.mirrored = settings.flip
    return encoder


def store_features(
    encoder: Encoder,
    examples: Sequence[Example],
    *,
    flip: bool,
    batch_size: int,
    strict: bool,
    say: Say,
    world: World | None = None,
) -> tuple[tuple[Example, ...], Tensor, Tensor, str]:
    """Encode the images that are not in the store, and read the features of all.

    Args:
        encoder: the frozen CNN.
        examples: the images.
        flip: also the mirrored view of each image.
        batch_size: images per forward pass.
        strict: an unreadable image is an error.
        say: receives status messages.
        world: the processes that encode together; None: one process.

    Returns:
        The N examples with a readable image; features, fp16 (R, F), in memory or on disk; the rows
        of each example, int64 (N, views); and a digest of the images' content, in order.

    Raises:
        DataError: if an image cannot be read and `strict`, or no image can be read.
    """
    store = FeatureStore.for_encoder(encoder)
    images = list(dict.fromkeys(example.image for example in examples))
    keys, broken = fill_store(
        store, encoder, images, mirrored=flip, batch_size=batch_size, world=world, say=say
    )
    for path, error in broken.items():
        say(f"skipped: {plain(path)}: {error}")
    if broken and strict:
        raise DataError(f"{len(broken)} image(s) cannot be read (data.strict), listed above")
    kept = tuple(example for example in examples if example.image in keys)
    wanted = [key for example in kept for key in keys[example.image]]
    features, rows = store.table(wanted)
    return kept, features, rows.view(len(kept), -1), digest_of(wanted)


def digest_of(pieces: Iterable[bytes]) -> str:
    """Return a digest of pieces in order; they have equal lengths or no zero bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        digest.update(piece + b"\0")
    return digest.hexdigest()


def _digest_of_captions(captions: list[list[list[str]]]) -> str:
    """Return a digest of the tokens of every caption of each image, in order."""
    return digest_of("\n".join(" ".join(tokens) for tokens in image).encode() for image in captions)


def tokenize_examples(
    examples: Sequence[Example], say: Say
) -> tuple[tuple[Example, ...], list[list[list[str]]]]:
    """Tokenise all captions, skip captions without a word, and report their number.

    Returns:
        The examples with a caption left, and for each the tokens of each caption.
    """
    kept: list[Example] = []
    tokens: list[list[list[str]]] = []
    wordless = 0
    for example in examples:
        captions = [words for caption in example.captions if (words := tokenize(caption))]
        wordless += len(example.captions) - len(captions)
        if captions:
            kept.append(example)
            tokens.append(captions)
    if wordless:
        say(f"skipped: {wordless:,} caption(s) without a word")
    return tuple(kept), tokens


def prepare(config: Config, encoder: Encoder, say: Say, world: World | None = None) -> Prepared:
    """Load, tokenise and encode the data of a run.

    Args:
        config: of the run.
        encoder: the frozen CNN, on its device.
        say: receives status messages.
        world: the processes that encode the images together; None: one process.

    Raises:
        DataError: if the data cannot be used.
    """
    dataset = open_dataset(config.data)
    train, train_tokens = tokenize_examples(dataset.split(config.data.split_train), say)
    dev, dev_tokens = tokenize_examples(dataset.split(config.data.split_dev), say)
    vocabulary = Vocabulary.build(
        (tokens for image in train_tokens for tokens in image), config.text.min_count
    )
    say(describe(dataset, _about_words(config, vocabulary, train_tokens, dev_tokens)))
    settings = config.encoder
    tokens_of = dict(zip((example.image_id for example in train), train_tokens, strict=True))
    tokens_of |= dict(zip((example.image_id for example in dev), dev_tokens, strict=True))
    store = partial(
        store_features,
        encoder,
        batch_size=settings.batch_size,
        strict=config.data.strict,
        say=say,
        world=world,
    )
    train, features, rows, images = store(train, flip=settings.flip)
    train_tokens = [tokens_of[example.image_id] for example in train]
    table = CaptionTable.build(
        features,
        train_tokens,
        vocabulary,
        views=rows,
        max_length=config.text.max_length,
    )
    dev, features, rows, dev_images = store(dev, flip=encoder.mirrored)
    references = [tokens_of[example.image_id] for example in dev]
    dev_table = SplitTable(dev, _mean_of_views(features, rows), references)
    data = {
        "train captions": _digest_of_captions(train_tokens),
        "train images": images,
        "dev captions": _digest_of_captions(references),
        "dev images": dev_images,
    }
    return Prepared(vocabulary, table, train_tokens, dev_table, data)


def _about_words(
    config: Config,
    vocabulary: Vocabulary,
    train: list[list[list[str]]],
    dev: list[list[list[str]]],
) -> list[tuple[str, str]]:
    def coverage(split: list[list[list[str]]]) -> str:
        return f"{vocabulary.coverage(tokens for image in split for tokens in image):.1%}"

    size = f"{len(vocabulary):,} entries (words that occur {config.text.min_count} times or more)"
    return [
        ("vocabulary", size),
        ("coverage", f"{coverage(train)} of the words in train, {coverage(dev)} in dev"),
    ]


def read_split(
    dataset: Dataset, split: str, encoder: Encoder, *, batch_size: int, say: Say
) -> SplitTable:
    """Tokenise and encode one split, for captioning and scoring.

    Raises:
        DataError: if the split has no usable image.
    """
    examples, tokens = tokenize_examples(dataset.split(split), say)
    tokens_of = {e.image_id: words for e, words in zip(examples, tokens, strict=True)}
    examples, features, rows, _ = store_features(
        encoder, examples, flip=encoder.mirrored, batch_size=batch_size, strict=False, say=say
    )
    references = [tokens_of[example.image_id] for example in examples]
    return SplitTable(examples, _mean_of_views(features, rows), references)


def _mean_of_views(features: Tensor, rows: Tensor) -> Tensor:
    """Return the mean features of each image's views, fp16 (N, F)."""
    return features[rows].float().mean(1).half()
