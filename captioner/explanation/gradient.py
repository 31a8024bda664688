"""Where a word came from, by gradients: the word's log-probability, led back to places.

A word's log-probability is a function of the image's features. Its gradient passes back through
time to the initial state, and through the projection to the features. The gradient at the image
alone says little about a word of probability near 1, which nothing can make more probable. So it is
averaged along the line from the average training image to the image (integrated gradients). Then
gradient times difference of the features adds up to the difference of the log-probabilities.

Each feature is then divided among the places of the last feature map, as gradient times activation.
For the mean over places, which pools most CNNs, that is exact: nothing is lost or added.

Source: Sundararajan et al. (2017), "Axiomatic Attribution for Deep Networks"; gradient times
activation of each place: Draelos and Carin (2020), "Use HiResCAM instead of Grad-CAM".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from captioner.decoder.decoder import Decoder
from captioner.decoder.ensemble import Ensemble
from captioner.encoder.encoder import Encoder, FrozenEncoder
from captioner.encoder.last_map import last_map
from captioner.explanation.teacher_forcing import log_probs_of_words, members_of

STEPS = 16


class Line(NamedTuple):
    """Points on the line from the average training image, 0, to the image, 1, and their weights."""

    points: Tensor  # (N,)
    weights: Tensor  # (N,), their sum is 1


def whole_line(steps: int = STEPS) -> Line:
    """Return points of the whole line, denser near the average image.

    Words are decided there: a few steps towards the image make its words nearly certain.
    """
    middles = (torch.arange(steps) + 0.5) / steps
    return Line(middles.square(), 2 * middles / steps)


END_OF_LINE = Line(torch.ones(1), torch.ones(1))  # the gradient at the image


class FeatureGradients(NamedTuple):
    """The gradients of the log-probability of T words by F features, averaged along a line."""

    gradients: Tensor  # (T, F)
    average: Tensor  # the gradients times the average training image's features, (T, F)


@torch.inference_mode(False)
def gradient_maps(
    encoder: Encoder,
    decoder: Decoder | Ensemble,
    pixels: Tensor,
    token_ids: Tensor,
    line: Line | None = None,
    features: Tensor | None = None,
) -> Tensor:
    """Compute what each place adds to the log-probability of each word of a caption.

    Places of several CNNs, of a grid and of both views of a mirrored model are added where they
    lie in the image. The result has as many places as the finest of them.

    Args:
        encoder: of one or several CNNs.
        decoder: in evaluation mode.
        pixels: of one image, uint8 (1, 3, S, S).
        token_ids: of the caption, without start token, int64 (T,).
        line: where to take gradients; None: `whole_line()`.
        features: of the image, (1, F); None: computed here.

    Returns:
        Nats, float32 (T, h, w): positive where the place makes the word more probable than it is
        for the average training image.

    Raises:
        ModelError: if no feature map has more than one place.
    """
    pixels, token_ids = pixels.clone(), token_ids.clone()  # may come from inference mode
    features = (encoder.see(pixels) if features is None else features).clone()
    gradients, average = feature_gradients(decoder, features, token_ids, line or whole_line())
    sizes = [cnn.vector_size for cnn in encoder.cnns]
    of_cnns = (each[:, : encoder.vector_size].split(sizes, dim=1) for each in (gradients, average))
    maps = []
    for cnn, gradient, base in zip(encoder.cnns, *of_cnns, strict=True):
        seen = _to_places(cnn, pixels, gradient)
        if encoder.mirrored:
            seen = (seen + _to_places(cnn, pixels.flip(-1), gradient).flip(2)) / 2
        maps.append(seen - base.sum(1)[:, None, None] / seen[0].numel())
    if encoder.grid:
        places = (gradients * features - average)[:, encoder.vector_size :]
        maps.append(places.unflatten(1, (encoder.grid, encoder.grid, -1)).sum(3))
    size = max(each.shape[1] for each in maps)
    return torch.stack([resized(each, size) for each in maps]).sum(0)


@torch.inference_mode(False)
def feature_gradients(
    decoder: Decoder | Ensemble, features: Tensor, token_ids: Tensor, line: Line
) -> FeatureGradients:
    """Differentiate the log-probability of each word of a caption by an image's features, (1, F).

    Each member of an ensemble walks its own line at the same pace.
    """
    numbers = torch.arange(features.shape[1], device=features.device)[None]
    columns = [part[0] for _, part in members_of(decoder, numbers)]
    points = line.points.to(features)[:, None]
    leaves, averages = [], []
    for member, part in members_of(decoder, features):
        average = _average_image(member)
        averages.append(average)
        leaves.append((member, (average + points * (part - average)).requires_grad_()))
    found = FeatureGradients(*features.new_zeros(2, len(token_ids), features.shape[1]))
    with torch.enable_grad():
        log_probs = log_probs_of_words(leaves, token_ids)
        for word, value in enumerate(line.weights.to(features) @ log_probs):
            gradients = torch.autograd.grad(value, [x for _, x in leaves], retain_graph=True)
            for gradient, average, each in zip(gradients, averages, columns, strict=True):
                found.gradients[word, each] += gradient.sum(0)
                found.average[word, each] += gradient.sum(0) * average
    return found


def _average_image(decoder: Decoder) -> Tensor:
    """Return the mean features of the training images, (F,); zero if the model has not measured."""
    mean = decoder.init_hidden.mean
    if decoder.attention is None:
        return mean
    return torch.cat((mean, decoder.attention.mean.repeat(decoder.places)))


def _to_places(cnn: FrozenEncoder, pixels: Tensor, gradients: Tensor) -> Tensor:
    """Divide gradient times feature, (T, F), among the places of an image's last map, (T, h, w)."""
    vector, feature_map = last_map(cnn, pixels)
    activations = feature_map.detach().float()
    maps = []
    for gradient in gradients:
        size = gradient.abs().amax().clamp(min=1e-30)  # fp16 has no small numbers
        [at_places] = torch.autograd.grad(
            vector, feature_map, (gradient / size)[None], retain_graph=True
        )
        maps.append((at_places.float() * activations).sum((0, 1)) * size)
    return torch.stack(maps)


def resized(maps: Tensor, size: int) -> Tensor:
    """Divide the places of maps, (T, h, w), into size x size places; the sum stays."""
    rows, columns = (_overlaps(side, size).to(maps) for side in maps.shape[1:])
    return rows @ maps @ columns.T


def _overlaps(old: int, new: int) -> Tensor:
    """Return how much of each of the old equal parts of a line is in each new part, (new, old)."""
    starts, ends = torch.arange(new)[:, None] / new, torch.arange(1, new + 1)[:, None] / new
    before, after = torch.arange(old) / old, torch.arange(1, old + 1) / old
    return (torch.minimum(ends, after) - torch.maximum(starts, before)).clamp(min=0) * old
