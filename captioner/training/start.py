"""Loads the initial weights and the words of a run from a trained model."""

from __future__ import annotations

from torch import Tensor

from captioner.decoder.decoder import Decoder
from captioner.encoder.encoder import Encoder
from captioner.errors import ConfigError, ModelError
from captioner.model_config import model_folder
from captioner.model_dir import read_model
from captioner.system.foreign import excerpt, plain
from captioner.text import Vocabulary

FREE = ("dropout", "feature_dropout", "place_dropout")  # settings that weights do not depend on
PER_WORD = ("embedding.weight", "output.weight", "output.bias")  # one row for each word


def start_vocabulary(folder: str, *, resumed: bool) -> Vocabulary | None:
    """Return the vocabulary of the model in a model or run directory.

    A resumed run has its weights already, so its model may be gone: None.

    Raises:
        ConfigError: if there is no usable model.
    """
    try:
        return Vocabulary.load(model_folder(folder) / "vocab.json")
    except ModelError as error:
        if resumed:
            return None
        raise ConfigError(f"training.start_from: {error}") from error


def start_weights(
    folder: str, decoder: Decoder, encoder: Encoder, vocabulary: Vocabulary
) -> dict[str, Tensor]:
    """Return the state dict of the decoder in a model or run directory.

    The decoder, encoder and vocabulary are those of the new run. Words that the model does not
    know keep the weights that they have in the decoder.

    Raises:
        ConfigError: if there is no usable model, or the model does not fit the run.
    """
    try:
        model = read_model(folder)
        own_config = model_folder(folder).parent / "config.yaml"
    except ModelError as error:
        raise ConfigError(f"training.start_from: {error}") from error
    misfits = []
    grids = [(eyes.grid, eyes.grid and eyes.grid_channels) for eyes in (model.encoder, encoder)]
    if grids[0] != grids[1]:
        misfits += [
            f"encoder.{name} is {theirs}, the run has {ours}"
            for name, theirs, ours in zip(("grid", "grid_channels"), *grids, strict=True)
            if theirs != ours
        ]
    # Precision may differ: the arithmetic is the same word in both fingerprints.
    elif model.encoder.fingerprint("any") != encoder.fingerprint("any"):
        misfits.append(f"the model has another CNN ({model.encoder.name})")
    known = len(model.vocabulary)
    if model.vocabulary.words != vocabulary.words[: len(model.vocabulary.words)]:
        misfits.append(f"the model has other words ({known:,} entries)")
    settings = model.decoder.config.model_dump()
    misfits += [
        f"decoder.{name} is {excerpt(settings[name])}, the run has {value!r}"
        for name, value in decoder.config.model_dump().items()
        if name not in FREE and settings[name] != value
    ]
    if misfits:
        hint = f"; {plain(own_config)} has its settings" if own_config.is_file() else ""
        raise ConfigError(
            f"training.start_from: model {folder} does not fit this run: {'; '.join(misfits)}{hint}"
        )
    weights = dict(model.decoder.state_dict())
    for name, initial in decoder.state_dict().items():
        if name in PER_WORD:
            theirs, weights[name] = weights[name], initial.clone()
            weights[name][:known] = theirs
    return weights
