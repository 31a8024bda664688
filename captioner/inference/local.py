"""Images -> caption records, on this machine: read ahead, encode in batches, search."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from captioner.config import DecodingConfig
from captioner.errors import ConfigError, ImageError, ImageErrorKind
from captioner.foreign import excerpt
from captioner.images import MAX_BYTES, MAX_PIXELS, read_file, read_image
from captioner.inference.sources import Item
from captioner.memory import Held, Memory
from captioner.models.captioner import Caption, Captioner
from captioner.models.pipeline import in_turn

DIGEST_BYTES = 16
MOST_WORKERS = 1024
BATCH_SIZE = 256  # keeps a GPU busy, and the search's many small steps cheap


@dataclass(frozen=True, slots=True)
class CaptioningOptions:
    """How to caption many images.

    Attributes:
        n_best: captions per image.
        batch_size: images per pass; fewer where memory is short.
        num_workers: threads that read and decode and, on a processor, encode and search; None:
            one per core.
        max_pixels: larger images are refused.
        scaled_decoding: decode large JPEGs at 1/2, 1/4 or 1/8 of their size, as long as twice
            what the CNN sees remains: much faster, and its pixels differ by less than 1 of 255.
        max_memory: bytes of images that are read and decoded at a time; None: `usual_limit`.
    """

    n_best: int = 1
    batch_size: int = BATCH_SIZE
    num_workers: int | None = None
    max_pixels: int = MAX_PIXELS
    scaled_decoding: bool = False
    max_memory: int | None = None

    def __post_init__(self) -> None:
        """Refuse threads that no machine has.

        Raises:
            ConfigError: if so.
        """
        count = self.num_workers
        if count is not None and not (isinstance(count, int) and 1 <= count <= MOST_WORKERS):
            raise ConfigError(
                f"num_workers: must be 1 to {MOST_WORKERS:,}, given {excerpt(count, 60)}"
            )


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
    captioner: Captioner,
    items: Iterable[Item],
    options: DecodingConfig | None = None,
    how: CaptioningOptions | None = None,
    *,
    memory: Memory | None = None,
) -> Iterator[Record]:
    """Caption images; a bad one costs its own record and nothing else.

    Args:
        captioner: on its device.
        items: images; or what could not be found, passed through as failures.
        options: how to search, such as `captioner.settings(beam_size=5)`; None: as the model does.
        how: how to caption many; None: the defaults.
        memory: see `caption_batches`.

    Yields:
        One record per item, in order.

    Raises:
        ConfigError: if a number is out of bounds, or the options do not fit the model or n_best.
    """
    how = how or CaptioningOptions()
    options = options or captioner.settings(n_best=how.n_best)
    batches = in_turn(items, how.batch_size)
    for batch in caption_batches(captioner, batches, options, how, memory=memory):
        yield from (done.record for done in batch if done.record)


def caption_batches(
    captioner: Captioner,
    batches: Iterable[Iterable[Item]],
    options: DecodingConfig,
    how: CaptioningOptions,
    *,
    known: Callable[[Item], frozenset[bytes]] = lambda item: frozenset(),  # noqa: ARG005
    together: bool = False,
    memory: Memory | None = None,
) -> Iterator[list[Done]]:
    """Caption images batch by batch; threads read the next batches meanwhile.

    The images of a batch go through the network together, whatever came before: what is written
    about an image does not depend on where a job was interrupted.

    Args:
        captioner: on its device.
        batches: read only as they are needed, so that memory does not grow with their number;
            a batch may be an iterator.
        options: how to search.
        how: how to caption many.
        known: tells the digests of what an item's name has held when it was captioned before.
        together: a batch is captioned whole or, if all of it is known, not at all.
        memory: asked for room to read and decode, the one that `list_images` asks; None: one of
            its own.

    Yields:
        What came of each batch, in order.

    Raises:
        ConfigError: if a number is out of bounds, or the options do not fit the model or n_best.
    """
    preprocess = captioner.encoder.preprocess
    at_least = preprocess.enough if how.scaled_decoding else None

    memory = memory or Memory(how.max_memory)

    def look(
        item: Item, before: frozenset[bytes], claim: Callable[[int], None]
    ) -> tuple[tuple[Done, bool], Tensor | None]:
        digest = b""
        try:
            data = _content(item, claim)
            digest = hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
            if digest in before and not together:
                return (Done(item.name, digest, None), True), None
            picture = read_image(data, max_pixels=how.max_pixels, at_least=at_least, claim=claim)
            return (Done(item.name, digest, None), digest in before), preprocess.pixels(picture)
        except ImageError as error:
            failure = Record(item.name, error=str(error), kind=error.kind)
            return (Done(item.name, digest, failure), digest in before), None

    def read(asked: tuple[Item, frozenset[bytes], int]) -> tuple[tuple[Done, bool], Tensor | None]:
        item, before, number = asked
        try:
            return look(item, before, partial(memory.claim, number=number))
        finally:  # where the bytes and the picture are gone already
            if isinstance(item.source, Held):
                item.source.give_back()
            memory.leave(number)

    asked = (((item, known(item), memory.join()) for item in batch) for batch in batches)
    for batch in captioner.captions_of(
        asked,
        read,
        options,
        needed=lambda made: not all(before for _, before in made),
        num_workers=how.num_workers,
        n_best=how.n_best,
    ):
        all_known = all(before for (_, before), _ in batch)
        yield [
            replace(done, record=_record(done.name, found))
            if found is not None
            else replace(done, record=None)
            if before and (all_known or not together)
            else done
            for (done, before), found in batch
        ]


def _record(name: str, found: list[Caption] | ImageError) -> Record:
    if isinstance(found, ImageError):
        return Record(name, error=str(found), kind=found.kind)
    return Record(name, tuple(found))


def _content(item: Item, claim: Callable[[int], None]) -> bytes:
    source = item.source
    if isinstance(source, ImageError):
        raise source
    if isinstance(source, bytes):
        return source
    if isinstance(source, Path):
        with suppress(OSError, ValueError):  # reading it says what is wrong
            claim(min(source.stat().st_size, MAX_BYTES))
        return read_file(source)
    if not isinstance(source, Held):
        claim(source.size)
    return source.read_bytes()
