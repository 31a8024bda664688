"""Where a word came from, without gradients: cover a part of the image and caption again."""

from __future__ import annotations

import torch
from torch import Tensor

from captioner.decoder.decoder import Decoder
from captioner.decoder.ensemble import Ensemble
from captioner.encoder.encoder import Encoder
from captioner.explanation.teacher_forcing import log_probs_of_words, members_of

PLACES = 7  # in a row and in a column, without a grid of the model's own
PATCH = 2  # places in a row that a patch covers: a smaller one leaves enough to see


@torch.inference_mode()
def occlusion_maps(
    encoder: Encoder,
    decoder: Decoder | Ensemble,
    pixels: Tensor,
    token_ids: Tensor,
    features: Tensor | None = None,
) -> Tensor:
    """Compute how much less probable each word of a caption gets if a place is covered.

    A grey patch, the mean of the image's colours, lies over each place and half of its neighbours.

    Source: Zeiler and Fergus (2014), "Visualizing and Understanding Convolutional Networks".

    Args:
        encoder: of one or several CNNs.
        decoder: in evaluation mode.
        pixels: of one image, uint8 (1, 3, S, S).
        token_ids: of the caption, without start token, int64 (T,).
        features: of the image, (1, F); None: computed here.

    Returns:
        Nats, float32 (T, P, P): positive where the word gets less probable. P is `PLACES`, or the
        model's grid.
    """
    size = encoder.grid or PLACES
    whole = encoder.see(pixels) if features is None else features
    every = torch.cat((whole, encoder.see(covered(pixels, size))))
    log_probs = log_probs_of_words(members_of(decoder, every), token_ids)
    lost: Tensor = (log_probs[:1] - log_probs[1:]).T.unflatten(1, (size, size))
    return lost


def covered(pixels: Tensor, size: int) -> Tensor:
    """Copy an image, (1, 3, S, S), once for each of size x size places, which a patch covers."""
    side = pixels.shape[3]
    grey = pixels[0].float().mean((1, 2)).round().to(pixels.dtype)[:, None, None]
    copies = pixels.repeat(size * size, 1, 1, 1)
    half = PATCH * side / size / 2
    for number, copy in enumerate(copies):
        row, column = ((place + 0.5) * side / size for place in divmod(number, size))
        (top, bottom), (left, right) = (
            (max(0, round(middle - half)), round(middle + half)) for middle in (row, column)
        )
        copy[:, top : max(bottom, top + 1), left : max(right, left + 1)] = grey
    return copies
