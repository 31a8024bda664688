"""Images -> caption records, on this machine: read ahead, encode in batches, search."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from captioner.errors import ImageError, ImageErrorKind
from captioner.images import MAX_PIXELS, read_file, read_image
from captioner.inference.sources import Item
from captioner.models.captioner import Caption, Captioner
from captioner.models.pipeline import batched, captions_of

DIGEST_BYTES = 16
BATCH_SIZE = 256  # keeps a GPU busy, and the search's many small steps cheap


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


def caption_batches(
    captioner: Captioner,
    batches: Iterable[Sequence[Item]],
    *,
    num_workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    scaled_decoding: bool = False,
    known: Callable[[Sequence[Item]], Sequence[frozenset[bytes]]] | None = None,
    n_best: int = 1,
    **decoding: Any,
) -> Iterator[list[Done]]:
    """Caption images batch by batch; threads read the next batches meanwhile.

    The images of a batch go through the network together, whatever came before: what is written
    about an image does not depend on where a job was interrupted.

    Args:
        captioner: on its device.
        batches: read only as they are needed, so that memory does not grow with their number.
        num_workers: threads that read and decode and, on a processor, encode and search; None:
            one per core.
        max_pixels: larger images are refused.
        scaled_decoding: decode large JPEGs at 1/2, 1/4 or 1/8 of their size, as long as twice
            what the CNN sees remains: much faster, and its pixels differ by less than 1 of 255.
        known: tells for each item of a batch the digests of what its name has held when it was
            captioned before; None: nothing is known.
        n_best: captions per image.
        **decoding: overrides of the model's own settings, such as beam_size=5.

    Yields:
        What came of each batch, in order.

    Raises:
        ConfigError: if a decoding setting is unknown or impossible.
    """
    preprocess = captioner.encoder.preprocess
    at_least = preprocess.enough if scaled_decoding else None

    def read(asked: tuple[Item, frozenset[bytes]]) -> tuple[Done, Tensor | None]:
        item, before = asked
        digest = b""
        try:
            data = _content(item)
            digest = hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
            if digest in before:
                return Done(item.name, digest, None), None
            picture = read_image(data, max_pixels=max_pixels, at_least=at_least)
            return Done(item.name, digest, None), preprocess.pixels(picture)
        except ImageError as error:
            failure = Record(item.name, error=str(error), kind=error.kind)
            return Done(item.name, digest, None if digest in before else failure), None

    asked = (list(zip(batch, (known or _nothing)(batch), strict=True)) for batch in batches)
    for batch in captions_of(
        captioner, asked, read, num_workers=num_workers, n_best=n_best, **decoding
    ):
        yield [
            replace(done, record=_record(done.name, found)) if found else done
            for done, found in batch
        ]


def _record(name: str, found: list[Caption] | ImageError) -> Record:
    if isinstance(found, ImageError):
        return Record(name, error=str(found), kind=found.kind)
    return Record(name, tuple(found))


def _content(item: Item) -> bytes:
    if isinstance(item.source, ImageError):
        raise item.source
    if isinstance(item.source, bytes):
        return item.source
    return read_file(item.source) if isinstance(item.source, Path) else item.source.read_bytes()


def _nothing(batch: Sequence[Item]) -> list[frozenset[bytes]]:
    return [frozenset()] * len(batch)
