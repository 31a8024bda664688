"""Encodes the images whose features are not in the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from captioner.data.feature_store import MIRRORED, PLAIN, FeatureStore, image_key
from captioner.data.stores import check_limit
from captioner.encoder.encoder import Encoder
from captioner.errors import DataError, ImageError, ModelError
from captioner.images.content import ImageFile
from captioner.images.decode import read_file, read_image
from captioner.system.batches import batched
from captioner.system.foreign import plain
from captioner.system.workers import WithinMemory, Workers, workers
from captioner.system.world import World

T = TypeVar("T")
Keys = dict[ImageFile, tuple[bytes, ...]]  # the row keys of an image, the plain view first
Broken = dict[ImageFile, ImageError]
KEY_BATCH = 128  # files whose keys are computed together


def fill_store(
    store: FeatureStore,
    encoder: Encoder,
    images: Sequence[ImageFile],
    *,
    mirrored: bool = False,
    batch_size: int = 64,
    world: World | None = None,
    say: Callable[[str], None] = print,
) -> tuple[Keys, Broken]:
    """Encode every image that is not in the encoder's store.

    With `mirrored`, the mirrored view of each image is stored too. The processes of a world encode
    together, each its part.

    Returns:
        The row keys of each readable image, and the errors of the others.

    Raises:
        DataError: if no image can be read, or the stores would exceed their limit.
        ModelError: if a feature is not a finite fp16 number.
    """
    views = (PLAIN, MIRRORED) if mirrored else (PLAIN,)

    def keys_of(image: ImageFile) -> tuple[bytes, ...]:
        data = read_file(image)
        return tuple(image_key(data, view) for view in views)

    def missing(share: Sequence[ImageFile]) -> list[ImageFile]:
        todo = [image for image in share if any(key not in store for key in keys[image])]
        if todo:
            size = len(todo) * len(views) * store.feature_size * 2
            check_limit(store.folder.parent, size)
            say(
                f"features: {len(todo):,} images to encode ({size / 1e6:,.1f} MB in "
                f"{store.folder}), {len(share) - len(todo):,} already stored"
            )
        return todo

    with workers(None, encoder.device) as crew:
        results = crew.map_ahead(_or_error(keys_of), batched(images, KEY_BATCH))
        keys, broken = _sorted_out(chain.from_iterable(results))
        # Rounding depends on the batch. Machines without a common store encode all shares
        # themselves, in the same batches as the others.
        world = world or World()
        shares = [[*keys][rank :: world.size] for rank in range(world.size)]
        if world.size > 1:
            _encode(store, encoder, missing(shares[world.rank]), keys, crew, batch_size, say)
            world.wait()
        with store.filling():
            for share in shares:
                if todo := missing(share):
                    broken |= _encode(store, encoder, todo, keys, crew, batch_size, say)
    if not keys.keys() - broken.keys():
        first = "".join(f"; first: {plain(p)}: {error}" for p, error in list(broken.items())[:1])
        raise DataError(f"no image could be read{first}")
    return {image: key for image, key in keys.items() if image not in broken}, broken


def _encode(
    store: FeatureStore,
    encoder: Encoder,
    images: Sequence[ImageFile],
    keys: Keys,
    crew: Workers,
    batch_size: int,
    say: Callable[[str], None],
) -> Broken:
    """Store the features of images; return the errors of those that cannot be decoded."""
    broken: Broken = {}
    blank: list[ImageFile] = []
    encoders = [WithinMemory(encoder), WithinMemory(encoder.mirror)]
    pixels_of = _or_error(lambda image: encoder.preprocess.pixels(read_image(image)))
    with tqdm(
        total=len(images), desc="encoding", unit="image", smoothing=0.05, disable=None
    ) as bar:
        for batch in crew.map_ahead(pixels_of, batched(images, batch_size)):
            good, bad = _sorted_out(batch)
            broken |= bad
            blank += [image for image in good if encoder.preprocess.is_blank(good[image])]
            for view in range(len(keys[batch[0][0]])):
                # Files with equal content have one row.
                new = {keys[image][view]: image for image in good if keys[image][view] not in store}
                if new:
                    pixels = torch.stack([good[image] for image in new.values()])
                    features = torch.cat(
                        crew.compute(encoders[view], pixels, encoder.images_per_pass)
                    )
                    store.append(list(new), _storable(features, list(new.values())))
            bar.update(len(batch))
    if blank:
        say(
            f"features: {len(blank):,} image(s) are blank, the CNN sees one colour only; first: "
            f"{plain(blank[0])}"
        )
    return broken


def _or_error(
    function: Callable[[ImageFile], T],
) -> Callable[[ImageFile], tuple[ImageFile, T | ImageError]]:
    def call(image: ImageFile) -> tuple[ImageFile, T | ImageError]:
        try:
            return image, function(image)
        except ImageError as error:
            return image, error

    return call


def _sorted_out(
    results: Iterable[tuple[ImageFile, T | ImageError]],
) -> tuple[dict[ImageFile, T], Broken]:
    """Return the results, and the errors."""
    good: dict[ImageFile, T] = {}
    broken: Broken = {}
    for image, result in results:
        if isinstance(result, ImageError):
            broken[image] = result
        else:
            good[image] = result
    return good, broken


def _storable(features: Tensor, images: Sequence[ImageFile]) -> NDArray[np.float16]:
    rows = features.half().cpu()
    bad = ~rows.isfinite().all(1)
    if bad.any():
        raise ModelError(
            f"{plain(images[int(bad.nonzero()[0])])}: its features are not finite fp16 numbers (up "
            f"to {torch.finfo(torch.float16).max:,.0f}); check that encoder.weights fit the "
            f"backbone, or set encoder.precision to fp32"
        )
    return np.asarray(rows.numpy())
