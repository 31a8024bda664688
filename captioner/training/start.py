"""Loads the initial weights of a run from a trained model."""

from __future__ import annotations

from torch import Tensor

from captioner.decoder.decoder import Decoder
from captioner.encoder.encoder import Encoder
from captioner.errors import ConfigError, ModelError
from captioner.model_dir import read_model
from captioner.system.foreign import excerpt
from captioner.text import Vocabulary

FREE = ("dropout", "feature_dropout")  # settings that weights do not depend on


def start_weights(
    folder: str, decoder: Decoder, encoder: Encoder, vocabulary: Vocabulary
) -> dict[str, Tensor]:
    """Return the state dict of the decoder in a model or run directory.

    The decoder, encoder and vocabulary are those of the new run.

    Raises:
        ConfigError: if there is no usable model, or the model does not fit the run.
    """
    try:
        model = read_model(folder)
    except ModelError as error:
        raise ConfigError(f"training.start_from: {error}") from error
    misfits = []
    # Precision may differ: the arithmetic is the same word in both fingerprints.
    if model.encoder.fingerprint("any") != encoder.fingerprint("any"):
        misfits.append(f"the model has another CNN ({model.encoder.name})")
    if model.vocabulary.words != vocabulary.words:
        theirs, ours = len(model.vocabulary), len(vocabulary)
        misfits.append(f"the model has another vocabulary ({theirs:,} entries, the run {ours:,})")
    settings = model.decoder.config.model_dump()
    misfits += [
        f"decoder.{name} is {excerpt(settings[name])}, the run has {value!r}"
        for name, value in decoder.config.model_dump().items()
        if name not in FREE and settings[name] != value
    ]
    if misfits:
        raise ConfigError(
            f"training.start_from: model {folder} does not fit this run: {'; '.join(misfits)}"
        )
    return dict(model.decoder.state_dict())
