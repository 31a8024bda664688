"""Prepares the data of a run: data set, vocabulary, features and tables."""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from captioner.config import Config, DataConfig, holds_scenes, resolve_path
from captioner.data.caption_table import CaptionTable
from captioner.data.dataset import Dataset, Example, describe
from captioner.data.feature_file import FeatureFile
from captioner.data.feature_store import FeatureStore
from captioner.data.fill import fill_store
from captioner.data.load import load_dataset
from captioner.encoder.encoder import Encoder, FrozenEncoder, side_by_side
from captioner.encoder.given_features import GivenFeatures
from captioner.errors import ConfigError, DataError, ModelError
from captioner.system.foreign import excerpt, plain
from captioner.system.memory import fits
from captioner.system.world import World
from captioner.text import UNSPACED, Tokenizer, Vocabulary, make_tokenizer
from captioner.text.languages import advice, length_advice

Say: TypeAlias = Callable[[str], None]
Tokens: TypeAlias = list[list[str]]  # of each caption of an image
LEAST_COVERAGE = 0.5  # of the words in the captions
NEARLY_ALL = 0.9  # of the words: a good coverage
PHRASE = 7  # characters of a token that is hardly one word of a script without spaces
# Settings of the first CNN, as its error messages name them.
OF_A_CNN = re.compile(r"\bencoder\.(backbone|weights|builder_args)\b")
SCENES_CNN = "scenes_cnn.safetensors"  # weights that know drawn scenes only


@dataclass(frozen=True, slots=True)
class SplitTable:
    """The data to caption and score a split of N images."""

    examples: tuple[Example, ...]
    features: Tensor  # fp16 (N, F)
    references: list[Tokens]  # words, for scores
    tokens: list[Tokens]  # of the same captions, as the model writes them


@dataclass(frozen=True, slots=True)
class Prepared:
    """The data of a run."""

    vocabulary: Vocabulary
    train: CaptionTable
    references: list[Tokens]  # words of each training image's captions, for scores
    dev: SplitTable
    data: dict[str, str]  # digests of the images and captions of train and dev, by name


def open_dataset(config: DataConfig, features: str | None = None) -> Dataset:
    """Load the data set of a config; see `load_dataset`.

    With `encoder.features`, pictures may be missing: they are looked for in `data.images` only.
    """
    unseen: Literal[False] | None = False if features else None
    return load_dataset(
        resolve_path(config.root),
        images=resolve_path(config.images) if config.images else unseen,
        splits=(config.split_train, config.split_dev, config.split_test),
        **config.model_dump(exclude={"root", "images", "split_train", "split_dev", "split_test"}),
    )


def open_encoder(config: Config, device: torch.device) -> Encoder:
    """Build the frozen CNNs of a config; see `FrozenEncoder.create` and `side_by_side`.

    With `encoder.features`, return what stands for the CNNs.
    """
    settings = config.encoder
    if settings.features:
        file = FeatureFile(resolve_path(settings.features))
        attends = config.decoder.attention != "none"
        return GivenFeatures.of_shape(file.shape, attends, file.path.name).to_device(device)
    cnns: list[FrozenEncoder] = []
    drawn = [cnn for cnn in settings.cnns if Path(cnn.weights).name == SCENES_CNN]
    if drawn and not holds_scenes(config.data.root):
        print(
            "warning: encoder.weights: this CNN knows drawn scenes only; for photographs, use the "
            "configuration photos, or set encoder.backbone and encoder.weights",
            file=sys.stderr,
        )
    for number, cnn in enumerate(settings.cnns):
        try:
            frozen = FrozenEncoder.create(
                cnn.backbone,
                cnn.weights,
                builder_args=cnn.builder_args,
                image_size=settings.image_size,
                # With an explicit image_size, all CNNs resize as the first does.
                like=cnns[0].preprocess if cnns else None,
                precision=settings.precision,
                grid=settings.grid if config.decoder.attention != "none" else 0,
                grid_channels=settings.grid_channels,
            )
        except ModelError as error:
            if not cnns:
                raise
            raise ModelError(OF_A_CNN.sub(rf"encoder.cnns.{number}.\1", str(error))) from error
        cnns.append(frozen)
    encoder = side_by_side(cnns).to_device(device)
    encoder.mirrored = settings.flip if settings.mirrored is None else settings.mirrored
    return encoder


def prepare(
    config: Config,
    encoder: Encoder,
    say: Say,
    world: World | None = None,
    dataset: Dataset | None = None,
    base: Vocabulary | None = None,
) -> Prepared:
    """Tokenise and encode the data of a run, together with the other processes of a world.

    Without a data set, load that of the config. The words of `base` are kept, and new ones added.
    Its tokeniser must be that of the config.

    Raises:
        DataError: if the data cannot be used.
        ConfigError: if the vocabulary covers too few words, or the tokeniser cannot be used.
    """
    dataset = open_dataset(config.data, config.encoder.features) if dataset is None else dataset
    tokenizer = _tokenizer(dataset, config, base)
    train = _tokenized(dataset, config.data.split_train, tokenizer, say)
    dev = _tokenized(dataset, config.data.split_dev, tokenizer, say)
    captions = (caption for example in train for caption in example.captions)
    lengths = [len(tokens) for image in train.values() for tokens in image]
    for suggestion in suggestions(config, captions, lengths):
        say(suggestion)
    min_count = 1 if tokenizer.name == "bpe" else config.text.min_count
    vocabulary = _build_vocabulary(dataset, train, dev, min_count, tokenizer, base, say)
    seen = _Seen(encoder, config.encoder.batch_size, config.encoder.features, say)
    encode = partial(_encoded, seen, strict=config.data.strict, world=world)
    train, features, rows, images = encode(train, flip=config.encoder.flip)
    table = CaptionTable.build(
        features, [*train.values()], vocabulary, views=rows, max_length=config.text.max_length
    )
    dev, features, rows, dev_images = encode(dev, flip=encoder.mirrored)
    data = {
        "train captions": _digest_of_captions(train),
        "train images": images,
        "dev captions": _digest_of_captions(dev),
        "dev images": dev_images,
    }
    split = _split_table(dev, features, rows, tokenizer)
    return Prepared(vocabulary, table, _words(train, tokenizer), split, data)


def _tokenizer(dataset: Dataset, config: Config, base: Vocabulary | None) -> Tokenizer:
    """Return the tokeniser of a config; `bpe` learns from the train split, unless `base` has it.

    Raises:
        ConfigError: if a library is missing, or `base` has another tokeniser.
    """
    name = config.text.tokenizer
    if base is not None:
        if base.tokenizer.name != name:
            raise ConfigError(
                f"text.tokenizer: the model of training.start_from has {base.tokenizer.name}, the "
                f"run has {name}; set text.tokenizer={base.tokenizer.name}"
            )
        return base.tokenizer
    examples = dataset.split(config.data.split_train)
    captions = (caption for example in examples for caption in example.captions)
    return make_tokenizer(name, captions, config.text.vocab_size)


def suggestions(config: Config, captions: Iterable[str], lengths: Sequence[int]) -> list[str]:
    """Return which settings of text fit captions better, one sentence each.

    Args:
        config: of the run.
        captions: of the train split.
        lengths: tokens of each caption, by the tokeniser of the config.
    """
    found = [length_advice(lengths, config.decoding.max_length)]
    if config.text.tokenizer == "ptb" and config.training.start_from is None:
        found.append(advice(captions, lengths))
    return [*filter(None, found[::-1])]


def _build_vocabulary(
    dataset: Dataset,
    train: dict[Example, Tokens],
    dev: dict[Example, Tokens],
    min_count: int,
    tokenizer: Tokenizer,
    base: Vocabulary | None,
    say: Say,
) -> Vocabulary:
    """Build the vocabulary of the train split; print it with the numbers of the data set.

    The words of `base` are kept.

    Raises:
        ConfigError: if the vocabulary covers too few words.
        DataError: if this is because there are no spaces between words.
    """
    captions = [[*chain.from_iterable(split.values())] for split in (train, dev)]
    vocabulary = Vocabulary.build(captions[0], min_count, base, tokenizer)
    covered = [vocabulary.coverage(split) for split in captions]
    words = f"words that occur {min_count} times or more"
    if base is not None:
        words = f"{len(base):,} of the model to start from, and {words}"
    entries = f"{len(vocabulary):,} entries ({words})"
    coverage = f"{covered[0]:.1%} of the words in train, {covered[1]:.1%} in dev"
    say(describe(dataset, [("vocabulary", entries), ("coverage", coverage)]))
    if min(covered) < LEAST_COVERAGE:
        _check_spaces(captions[0])
    if covered[0] < LEAST_COVERAGE or not vocabulary.words:
        raise ConfigError(
            f"text.min_count: the vocabulary covers {covered[0]:.0%} of the words in train, too "
            f"few to learn captions; {_better_count(captions[0], min_count)}"
        )
    if covered[1] < LEAST_COVERAGE:
        say("warning: most words in dev do not occur in train, so dev scores mean little")
    return vocabulary


def _check_spaces(captions: Tokens) -> None:
    """Refuse captions in a script without spaces whose words are not separated.

    Raises:
        DataError: if most tokens of these scripts are as long as phrases.
    """
    tokens = [token for caption in captions for token in caption]
    unspaced = [token for token in tokens if UNSPACED.search(token)]
    phrases = [token for token in unspaced if len(token) >= PHRASE]
    if len(phrases) * 2 > len(unspaced) > len(tokens) / 2:
        raise DataError(
            f"captions: no spaces between words, as in {excerpt(phrases[0], 40)}; set "
            f"text.tokenizer=unicode (--set text.tokenizer=unicode), or separate the words by "
            f"spaces first, with a word segmenter of the language"
        )


def _better_count(captions: Tokens, min_count: int) -> str:
    """Return advice on the largest `text.min_count` that covers nearly all words, or else 1."""
    counts = Counter(chain.from_iterable(captions)).values()
    if min_count == 1 or not counts:
        return "check the captions"
    least = NEARLY_ALL * sum(counts)
    fits = (n for n in range(min_count - 1, 1, -1) if sum(c for c in counts if c >= n) >= least)
    best = next(fits, 1)
    covered = sum(count for count in counts if count >= best) / sum(counts)
    return f"--set text.min_count={best} covers {covered:.0%}"


def read_split(
    dataset: Dataset,
    split: str,
    encoder: Encoder,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    say: Say,
    features: str | None = None,
) -> SplitTable:
    """Tokenise and encode one split to caption and score; a `DataError` if none of it is usable.

    The `features` are the path of `encoder.features`, for a model without a CNN.
    """
    captions = _tokenized(dataset, split, tokenizer, say)
    seen = _Seen(encoder, batch_size, features, say)
    captions, table, rows, _ = _encoded(seen, captions, flip=encoder.mirrored, strict=False)
    return _split_table(captions, table, rows, tokenizer)


def _tokenized(
    dataset: Dataset, split: str, tokenizer: Tokenizer, say: Say
) -> dict[Example, Tokens]:
    """Tokenise the captions of a split; leave out, and count, captions without a word.

    Raises:
        DataError: if there is no such split, or it has no word.
    """
    captions = {
        example: [tokens for caption in example.captions if (tokens := tokenizer.tokenize(caption))]
        for example in dataset.split(split)
    }
    wordless = sum(len(example.captions) - len(kept) for example, kept in captions.items())
    if wordless:
        say(f"skipped: {wordless:,} caption(s) without a word")
    worded = {example: kept for example, kept in captions.items() if kept}
    if captions and not worded:
        raise DataError(f"split {plain(split)}: no caption has a word")
    return worded


@dataclass(frozen=True, slots=True)
class _Seen:
    """How images become features."""

    encoder: Encoder
    batch_size: int
    features: str | None  # path of a file, for `GivenFeatures`
    say: Say


def _encoded(
    seen: _Seen,
    captions: dict[Example, Tokens],
    *,
    flip: bool,
    strict: bool,
    world: World | None = None,
) -> tuple[dict[Example, Tokens], Tensor, Tensor, str]:
    """Encode the images that are not in the store, and read the features of all.

    Returns:
        The captions of the N readable images; features, fp16 (R, F), in memory or on disk; the rows
        of each image, int64 (N, views); and a digest of the images' content, in order.
    """
    encoder, say = seen.encoder, seen.say
    if isinstance(encoder, GivenFeatures):
        return _given(encoder, seen, captions, strict)
    if seen.features:
        raise ConfigError(
            f"encoder.features: this model has a CNN ({encoder.name}) and sees pictures; set "
            f"encoder.features=null"
        )
    store = FeatureStore.for_encoder(encoder)
    images = list(dict.fromkeys(example.image for example in captions))
    keys, broken = fill_store(
        store, encoder, images, mirrored=flip, batch_size=seen.batch_size, world=world, say=say
    )
    for image, error in broken.items():
        say(f"skipped: {plain(image)}: {error}")
    if broken and strict:
        raise DataError(f"{len(broken)} image(s) cannot be read (data.strict), listed above")
    kept = {example: tokens for example, tokens in captions.items() if example.image in keys}
    wanted = [key for example in kept for key in keys[example.image]]
    features, rows = store.table(wanted)
    return kept, features, rows.view(len(kept), -1), _digest_of(wanted)


def _given(
    encoder: GivenFeatures, seen: _Seen, captions: dict[Example, Tokens], strict: bool
) -> tuple[dict[Example, Tokens], Tensor, Tensor, str]:
    """Read the features of a file; see `_encoded`.

    Raises:
        DataError: if the file does not fit the model or the images, or the memory.
        ConfigError: if no file is named.
    """
    if not seen.features:
        raise ConfigError(f"{encoder.name}: the model captions features; set encoder.features=PATH")
    file = FeatureFile(resolve_path(seen.features))
    keys = file.keys_of(captions)
    missing = [example for example in captions if example not in keys]
    if missing:
        first = plain(missing[0].image_id, 60)
        line = f"{len(missing):,} image(s) without features in {file.path}; first: {first}"
        if strict or not keys:
            known = excerpt(next(iter(file.index)), 60)
            raise DataError(f"{line}; the ids in the file look like {known}")
        seen.say(f"skipped: {line}")
    kept = {example: tokens for example, tokens in captions.items() if example in keys}
    wanted = [keys[example] for example in kept]
    size = len(wanted) * encoder.feature_size * 2
    mapped = None if fits(size, torch.device("cpu")) else file.mapped()
    if mapped is None and not fits(size, torch.device("cpu")):
        raise DataError(
            f"{file.path}: {size / 1e9:,.1f} GB do not fit the memory; store vectors as one .npy "
            f"of float16, which stays on disk"
        )
    features = torch.empty(0 if mapped is not None else len(wanted), encoder.feature_size).half()
    digest = hashlib.blake2b(digest_size=16)
    for number, key in enumerate(wanted):
        try:
            row = encoder.row(file.read(key))
        except ValueError as error:
            raise DataError(f"{file.path}: {excerpt(key)}: {error}") from error
        digest.update(row.numpy().tobytes())
        if mapped is None:
            features[number] = row
    rows = torch.arange(len(wanted))
    if mapped is not None:
        features = torch.from_numpy(mapped)
        rows = torch.tensor([file.index[key] for key in wanted])
    return kept, features, rows[:, None], digest.hexdigest()


def _split_table(
    captions: dict[Example, Tokens], features: Tensor, rows: Tensor, tokenizer: Tokenizer
) -> SplitTable:
    """Return a split with the mean features of each image's views."""
    mean = features[rows].float().mean(1).half()
    tokens = list(captions.values())
    return SplitTable(tuple(captions), mean, _words(captions, tokenizer), tokens)


def _words(captions: dict[Example, Tokens], tokenizer: Tokenizer) -> list[Tokens]:
    """Return the words of the captions of each image, for scores."""
    return [[tokenizer.words_in(tokens) for tokens in image] for image in captions.values()]


def _digest_of_captions(captions: dict[Example, Tokens]) -> str:
    return _digest_of(
        "\n".join(" ".join(tokens) for tokens in image).encode() for image in captions.values()
    )


def _digest_of(pieces: Iterable[bytes]) -> str:
    """Return a digest of pieces in order; they have equal lengths or no zero bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        digest.update(piece + b"\0")
    return digest.hexdigest()
