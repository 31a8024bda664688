"""Images -> caption records, on this machine: read ahead, encode in batches, search."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from captioner.errors import ImageError, ImageErrorKind
from captioner.images import MAX_PIXELS, read_file, read_image
from captioner.inference.sources import Item
from captioner.models.captioner import Caption, Captioner
from captioner.workers import cores, on_cores, workers

T = TypeVar("T")

DIGEST_BYTES = 16
BATCH_SIZE = 256  # keeps a GPU busy, and the search's many small steps cheap
AHEAD = 2  # batches that are read while one is captioned
SEARCHED = 128  # images a core searches for together; fixed, as random draws depend on it


@dataclass(frozen=True, slots=True)
class Record:
    """What came of one image.

    Attributes:
        file_name: as the user or the listing named it.
        captions: best first; empty where the image failed.
        error: what was wrong with the image, if anything.
        kind: of the error, for programs.
    """

    file_name: str
    captions: tuple[Caption, ...] = ()
    error: str | None = None
    kind: ImageErrorKind | None = None

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


@dataclass(frozen=True, slots=True)
class Done:
    """One image of a batch that is done.

    Attributes:
        name: of the item.
        digest: of its content; empty where there was none to read.
        record: what came of it; None where that is known already.
    """

    name: str
    digest: bytes
    record: Record | None


@dataclass(frozen=True, slots=True)
class _Read:
    """An image as a reading thread leaves it.

    Attributes:
        name: of the item.
        digest: of its content.
        found: pixels; None if it was captioned before.
    """

    name: str
    digest: bytes
    found: Tensor | ImageError | None


def caption_files(
    captioner: Captioner, items: Iterable[Item], *, batch_size: int = BATCH_SIZE, **options: Any
) -> Iterator[Record]:
    """Caption images; a bad one costs its own record and nothing else.

    Args:
        captioner: on its device.
        items: images; or what could not be found, passed through as failures.
        batch_size: images per pass; fewer where memory is short.
        **options: see `caption_batches`.

    Yields:
        One record per item, in order.

    Raises:
        ConfigError: if a decoding setting is unknown or impossible.
    """
    for batch in caption_batches(captioner, batched(items, batch_size), **options):
        yield from (done.record for done in batch if done.record)


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield items in lists of a size; the last may be shorter."""
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch


def caption_batches(
    captioner: Captioner,
    batches: Iterable[Sequence[Item]],
    *,
    num_workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    scaled_decoding: bool = False,
    known: Callable[[str], frozenset[bytes]] = lambda name: frozenset(),  # noqa: ARG005
    n_best: int = 1,
    **decoding: Any,
) -> Iterator[list[Done]]:
    """Caption images batch by batch; threads read the next batches meanwhile.

    The images of a batch go through the network together, whatever came before: what is written
    about an image does not depend on where a job was interrupted.

    Args:
        captioner: on its device.
        batches: read only as they are needed, so that memory does not grow with their number.
        num_workers: threads that read and decode; None: one per core.
        max_pixels: larger images are refused.
        scaled_decoding: decode large JPEGs at 1/2, 1/4 or 1/8 of their size, as long as twice
            what the CNN sees remains: much faster, and its pixels differ by less than 1 of 255.
        known: tells the digests of what an item's name has held when it was captioned before.
        n_best: captions per image.
        **decoding: overrides of the model's own settings, such as beam_size=5.

    Yields:
        What came of each batch, in order.

    Raises:
        ConfigError: if a decoding setting is unknown or impossible.
    """
    settings = captioner.settings(n_best=n_best, **decoding).model_dump()
    preprocess = captioner.encoder.preprocess
    at_least = preprocess.enough if scaled_decoding else None
    encode = _WithinMemory(captioner.encoder.see)
    search = _WithinMemory(partial(captioner.search, n_best=n_best, **settings))

    def read(item: Item, before: frozenset[bytes]) -> _Read:
        digest = b""
        try:
            data = _content(item)
            digest = hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
            if digest in before:
                return _Read(item.name, digest, None)
            picture = read_image(data, max_pixels=max_pixels, at_least=at_least)
            return _Read(item.name, digest, preprocess.pixels(picture))
        except ImageError as error:
            return _Read(item.name, digest, None if digest in before else error)

    def caption(batch: list[_Read]) -> list[Done]:
        found: Iterator[list[Caption]] = iter(())
        pixels = [image.found for image in batch if isinstance(image.found, Tensor)]
        if pixels:
            stacked = torch.stack(pixels)
            if captioner.device.type == "cpu":
                features = on_cores(pool, captioner.encoder.see, stacked, together)
                parts = on_cores(pool, search, torch.cat(features), SEARCHED)
            else:
                if captioner.device.type == "cuda":
                    stacked = stacked.pin_memory()  # copied while the device computes
                parts = [search(torch.cat(encode(stacked)))]
            found = (captions for part in parts for some in part for captions in some)
        return [Done(image.name, image.digest, _record(image, found)) for image in batch]

    source = iter(batches)
    together = captioner.encoder.images_per_pass
    captioner.encoder.prepare(num_workers or cores())
    with workers(num_workers, captioner.device) as pool:
        waiting: deque[list[Future[_Read]]] = deque()

        def read_ahead() -> None:
            for batch in islice(source, AHEAD - len(waiting)):
                waiting.append([pool.submit(read, item, known(item.name)) for item in batch])

        read_ahead()
        while waiting:
            ready = [image.result() for image in waiting.popleft()]
            read_ahead()
            yield caption(ready)


def _content(item: Item) -> bytes:
    if isinstance(item.source, ImageError):
        raise item.source
    if isinstance(item.source, bytes):
        return item.source
    return read_file(item.source) if isinstance(item.source, Path) else item.source.read_bytes()


def _record(image: _Read, found: Iterator[list[Caption]]) -> Record | None:
    if image.found is None:
        return None
    if isinstance(image.found, ImageError):
        return Record(image.name, error=str(image.found), kind=image.found.kind)
    return Record(image.name, tuple(next(found)))


class _WithinMemory:
    """Applies a function to a batch, in halves from then on where the memory is short."""

    def __init__(self, function: Callable[[Tensor], Any]):
        self.function = function
        self.limit: int | None = None

    def __call__(self, batch: Tensor) -> list[Any]:
        """Return what the function returns for each part, in order."""
        while True:
            size = min(self.limit or len(batch), len(batch))
            try:
                return [self.function(part) for part in batch.split(size)]
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                self.limit = size // 2
                torch.cuda.empty_cache()
