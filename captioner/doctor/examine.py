"""Runs the checks on a model, its run and a split of data."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from captioner.captioner import SEARCH_BATCH, Captioner
from captioner.config import Config
from captioner.data.dataset import Example
from captioner.data.feature_store import AlteredError, FeatureStore, store_folder
from captioner.data.prepare import SplitTable, open_dataset, read_split
from captioner.decoder.decoder import Decoder
from captioner.doctor import checks
from captioner.doctor.checks import Check
from captioner.encoder.encoder import Encoder
from captioner.encoder.preprocess import one_or_list
from captioner.errors import ImageError
from captioner.images.decode import read_image
from captioner.metrics import PreparedReferences, score_captions
from captioner.run_dir import identity_of
from captioner.text import Vocabulary

RECOMPUTED = 32  # features to recompute
SHUFFLES = 5


def examine(
    captioner: Captioner,
    config: Config,
    folder: Path,
    split: str | None = None,
    *,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> list[Check]:
    """Check a model on a split of data; causes come before their effects.

    The folder is the model's; its parent may be a run's. The default split is dev, or else test.

    Raises:
        DataError: if the split cannot be used.
        ModelError: if the captioner is an ensemble.
    """
    encoder = captioner.encoder
    decoder = captioner.single_decoder("examined; examine its models one by one")
    preprocessing = _check_preprocessing(encoder, folder.resolve().parent)
    try:
        table = _read(captioner, config, split, say)
    except AlteredError as error:
        advice = "drop the damaged rows with `captioner features --prune`, and train again"
        return [preprocessing, Check("feature store", "problem", str(error), advice)]
    rng = np.random.default_rng(seed)
    sample = rng.permutation(len(table.examples))[:RECOMPUTED]
    try:
        captions, initial, outputs = _run(captioner, decoder, table.features)
    except ImageError as error:
        advice = "restore model.safetensors, or train again with a lower training.learning_rate"
        return [Check("numbers", "problem", str(error), advice)]
    features = table.features.float().numpy()
    mean, std = (each.cpu().numpy() for each in (decoder.init_hidden.mean, decoder.init_hidden.std))
    stored = []
    if not config.encoder.features:
        fresh = _encode(captioner, [table.examples[i] for i in sample.tolist()])
        stored = [preprocessing, checks.check_store(features[sample], fresh)]
    return [
        *stored,
        checks.check_features(features, mean, std),
        checks.check_units(
            "initial state",
            *initial,
            "the decoder does not depend on the image: train again with decoder.feature_norm "
            "standardize, or a lower training.learning_rate",
        ),
        checks.check_units(
            "hidden units",
            *outputs,
            "train again with a lower training.learning_rate or decoder.hidden_size",
        ),
        _check_vocabulary(captioner.vocabulary, captions, table),
        checks.check_distinct(captions, [example.captions for example in table.examples]),
        _check_shuffle([*map(captioner.vocabulary.tokenizer.words, captions)], table, rng),
    ]


def _read(
    captioner: Captioner, config: Config, split: str | None, say: Callable[[str], None]
) -> SplitTable:
    """Read a split, by default dev or else test, and say what is examined."""
    given = config.encoder.features
    dataset = open_dataset(config.data, given)
    usual = (config.data.split_dev, config.data.split_test)
    split = split or next((name for name in usual if name in dataset.splits), usual[0])
    encoder, tokenizer = captioner.encoder, captioner.vocabulary.tokenizer
    size = config.encoder.batch_size
    table = read_split(dataset, split, encoder, tokenizer, batch_size=size, say=say, features=given)
    say(f"{split}: {len(table.examples):,} images of {dataset.root}")
    say(f"features: {given or FeatureStore.for_encoder(encoder).folder}")
    return table


def _check_vocabulary(words: Vocabulary, captions: list[str], table: SplitTable) -> Check:
    coverage = words.coverage(chain.from_iterable(table.tokens))
    used = {*chain.from_iterable(map(words.tokenizer.tokenize, captions))}
    return checks.check_vocabulary(coverage, len(used), len(words.words))


def shuffled_scores(
    captions: Sequence[Sequence[str]], references: PreparedReferences, rng: np.random.Generator
) -> list[float]:
    """Return the CIDEr of several shuffles of the captions, on the references of other images."""
    scores = []
    for _ in range(SHUFFLES):
        # One cycle through all images, so that no image keeps its caption.
        order = rng.permutation(len(captions))
        moved: list[Sequence[str]] = [()] * len(captions)
        for image, other in zip(order.tolist(), np.roll(order, 1).tolist(), strict=True):
            moved[image] = captions[other]
        scores.append(score_captions(moved, references, metrics=["cider"])["cider"].value)
    return scores


def _check_shuffle(
    tokens: Sequence[Sequence[str]], table: SplitTable, rng: np.random.Generator
) -> Check:
    if len(tokens) < 2:
        return Check("shuffled images", "warning", "one image cannot be shuffled", "use more")
    references = PreparedReferences(table.references)
    real = score_captions(tokens, references, metrics=["cider"])["cider"].value
    return checks.check_shuffle(real, shuffled_scores(tokens, references, rng))


Ranges = tuple[NDArray[Any], NDArray[Any]]


@torch.inference_mode()
def _run(
    captioner: Captioner, decoder: Decoder, features: Tensor
) -> tuple[list[str], Ranges, Ranges]:
    """Return the captions of a split, and the smallest and largest values of each unit.

    The units are those of the initial state, and those of the states while the captions are read.
    """
    captions: list[str] = []
    initial: list[Tensor] = []
    outputs: list[Tensor] = []
    for batch in features.split(SEARCH_BATCH):
        texts = [best[0].text for best in captioner.search(batch)]
        captions += texts
        hidden = decoder.init_hidden(batch.to(captioner.device))
        initial += hidden.transpose(0, 1).flatten(1).aminmax(dim=0)  # (L, B, H) -> (B, L * H)
        ids = [captioner.vocabulary.encode_text(text) for text in texts]
        rows = [torch.tensor([Vocabulary.bos_id, *words]) for words in ids]
        token_ids = pad_sequence(rows, batch_first=True, padding_value=Vocabulary.pad_id)
        read, _ = decoder.run_cell(token_ids.to(captioner.device), hidden)
        outputs += read[token_ids != Vocabulary.pad_id].aminmax(dim=0)
    return captions, _range(initial), _range(outputs)


def _range(extremes: list[Tensor]) -> Ranges:
    low, high = torch.stack(extremes).cpu().aminmax(dim=0)
    return low.numpy(), high.numpy()


def _encode(captioner: Captioner, examples: Sequence[Example]) -> NDArray[Any]:
    features = captioner.encode([read_image(example.image) for example in examples])
    return np.asarray(features.half().float().cpu().numpy())  # rounded as in the store


def _check_preprocessing(encoder: Encoder, run: Path) -> Check:
    identity = identity_of(run / "checkpoints")
    trained, arithmetic = identity.get("encoder"), identity.get("arithmetic")
    here, here_in_it = encoder.fingerprint(), encoder.fingerprint(arithmetic)
    changes = _changes(encoder, trained) if trained and trained != here else []
    return checks.check_preprocessing(trained, here, arithmetic, here_in_it, changes)


def _changes(encoder: Encoder, trained: str) -> list[str]:
    """Return the differences from the encoder of training, if its feature store still exists."""
    store = FeatureStore.for_encoder(encoder).folder
    about = store_folder(encoder, store.parent, trained) / "about.json"
    try:
        before = _flat(json.loads(about.read_text(encoding="utf-8"))["encoder"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    specs = one_or_list([asdict(cnn.spec) for cnn in encoder.cnns])
    now = _flat(json.loads(json.dumps(specs)))
    return [
        f"{key}: {now.get(key)}, was {value}"
        for key, value in before.items()
        if now.get(key) != value
    ]


def _flat(spec: Any) -> dict[str, Any]:
    """Flatten settings to keys such as `preprocess.mean`, or `1.preprocess.mean` of a list."""
    if isinstance(spec, list):
        return {
            f"{i}.{key}": value for i, cnn in enumerate(spec) for key, value in _flat(cnn).items()
        }
    flat = dict(spec)
    flat.pop("weights", None)  # only the origin, for display
    preprocess = flat.pop("preprocess", {})
    return flat | {f"preprocess.{key}": value for key, value in preprocess.items()}
