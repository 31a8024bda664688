"""Image files -> caption records, on this machine: read ahead, encode in batches, search."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captioner.errors import ImageError
from captioner.images import read_image
from captioner.inference.sources import Item
from captioner.models.captioner import Caption, Captioner


@dataclass(frozen=True, slots=True)
class Record:
    """What came of one image.

    Attributes:
        file_name: as the user or the listing named it.
        captions: best first; empty where the image failed.
        error: what was wrong with the image, if anything.
    """

    file_name: str
    captions: tuple[Caption, ...] = ()
    error: str | None = None

    @property
    def image_id(self) -> str:
        """The file's name without folder and ending."""
        return Path(self.file_name).stem

    @property
    def caption(self) -> str:
        """The best caption, empty where the image failed."""
        return self.captions[0].text if self.captions else ""

    @property
    def status(self) -> str:
        """`ok`, or `error`."""
        return "error" if self.error else "ok"


def caption_files(
    captioner: Captioner,
    items: Iterable[Item],
    *,
    batch_size: int = 32,
    num_workers: int | None = None,
    n_best: int = 1,
    **decoding: Any,
) -> Iterator[Record]:
    """Caption image files; a bad one costs its own record and nothing else.

    Args:
        captioner: on its device.
        items: images; or what could not be found, passed through as failures.
        batch_size: images per forward pass of the CNN.
        num_workers: threads that read and decode; None: one per core.
        n_best: captions per image.
        **decoding: overrides of the model's own settings, such as beam_size=5.

    Yields:
        One record per item, in order.

    Raises:
        ConfigError: if a decoding setting is unknown or impossible.
    """
    settings = captioner.settings(n_best=n_best, **decoding).model_dump()
    workers = num_workers or os.cpu_count() or 1
    source = iter(items)

    def pixels_of(item: Item) -> tuple[str, Tensor | ImageError]:
        if isinstance(item.source, ImageError):
            return item.name, item.source
        try:
            picture = read_image(item.source)
            return item.name, captioner.encoder.spec.preprocess.pixels(picture)
        except ImageError as error:
            return item.name, error

    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[tuple[str, Tensor | ImageError]]] = deque()
        while True:
            # One batch is searched while the next is read.
            room = 2 * batch_size - len(waiting)
            waiting.extend(pool.submit(pixels_of, item) for item in islice(source, room))
            if not waiting:
                return
            read = [waiting.popleft().result() for _ in range(min(batch_size, len(waiting)))]
            yield from _caption_batch(captioner, read, n_best, settings)


def _caption_batch(
    captioner: Captioner,
    read: list[tuple[str, Tensor | ImageError]],
    n_best: int,
    settings: dict[str, Any],
) -> Iterator[Record]:
    pixels = [found for _, found in read if isinstance(found, Tensor)]
    captions: Iterator[list[Caption]] = iter(())
    if pixels:
        features = captioner.encoder(torch.stack(pixels))
        captions = iter(captioner.search(features, n_best=n_best, **settings))
    for name, found in read:
        if isinstance(found, ImageError):
            yield Record(name, error=str(found))
        else:
            yield Record(name, tuple(next(captions)))
