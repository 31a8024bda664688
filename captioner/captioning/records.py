"""Images -> caption records, on this machine: read ahead, encode in batches, search."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from captioner.captioner import Caption, Captioner
from captioner.captioning.sources import Item
from captioner.config import DecodingConfig
from captioner.encoder.preprocess import Preprocess
from captioner.errors import ConfigError, ImageError, ImageErrorKind
from captioner.images.decode import MAX_BYTES, MAX_PIXELS, read_file, read_image
from captioner.system.batches import in_turn
from captioner.system.foreign import excerpt
from captioner.system.memory import Held, Memory

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

    def complete(self, found: list[Caption] | ImageError | None) -> Record:
        """Return the record with what the model found; None: as it is."""
        if found is None:
            return self
        if isinstance(found, ImageError):
            return replace(self, error=str(found), kind=found.kind)
        return replace(self, captions=tuple(found))

    def to_json(self) -> str:
        """Return all but the name, exactly, for `from_json`."""
        return json.dumps([[astuple(each) for each in self.captions], self.error, self.kind])

    @classmethod
    def from_json(cls, file_name: str, text: str) -> Record:
        """Read what `to_json` returned."""
        captions, error, kind = json.loads(text)
        return cls(file_name, tuple(Caption(*each) for each in captions), error, kind)


@dataclass(frozen=True, slots=True)
class Totals:
    """What a job comes to.

    Attributes:
        images: listed.
        failed: of these.
        fresh: captioned or failed in this sitting; the others were done before.
        errors: file that lists the failures; None where there are none.
    """

    images: int
    failed: int
    fresh: int
    errors: Path | None = None

    @property
    def captioned(self) -> int:
        """Images that have a caption."""
        return self.images - self.failed


class ItemReader:
    """Reads and decodes images, within a bound of memory."""

    def __init__(
        self, preprocess: Preprocess, how: CaptioningOptions, memory: Memory | None = None
    ):
        """Begin with nothing read.

        Args:
            preprocess: from a picture to its pixels.
            how: how to caption many.
            memory: see `caption_files`.
        """
        self.preprocess = preprocess
        self.max_pixels = how.max_pixels
        self.at_least = preprocess.enough if how.scaled_decoding else None
        self.memory = memory or Memory(how.max_memory)

    def read(
        self,
        item: Item,
        place: int,
        is_wanted: Callable[[bytes], bool] = lambda content: True,  # noqa: ARG005
    ) -> tuple[Record, Tensor | None]:
        """Read and decode an image.

        Args:
            item: the image.
            place: in the line of `memory`, which it then leaves.
            is_wanted: called with the file's content; False: it is not decoded.

        Returns:
            Its record, which says what is wrong, if anything; and pixels, uint8 (3, S, S), if it
            was decoded.
        """
        try:
            return self._read(item, partial(self.memory.claim, number=place), is_wanted)
        finally:  # where the bytes and the picture are gone already
            if isinstance(item.source, Held):
                item.source.give_back()
            self.memory.leave(place)

    def _read(
        self, item: Item, claim: Callable[[int], None], is_wanted: Callable[[bytes], bool]
    ) -> tuple[Record, Tensor | None]:
        record = Record(item.name)
        try:
            content = _content(item, claim)
            if not is_wanted(content):
                return record, None
            picture = read_image(
                content, max_pixels=self.max_pixels, at_least=self.at_least, claim=claim
            )
            return record, self.preprocess.pixels(picture)
        except ImageError as error:
            return record.complete(error), None


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
        items: images; or what could not be found, passed through as failures. They are listed as
            they are needed, so that memory does not grow with their number.
        options: how to search, such as `captioner.settings(beam_size=5)`; None: as the model does.
        how: how to caption many; None: the defaults.
        memory: asked for room to read and decode, the one that `list_images` asks; None: one of
            its own.

    Yields:
        One record per item, in order.

    Raises:
        ConfigError: if a number is out of bounds, or the options do not fit the model or n_best.
    """
    how = how or CaptioningOptions()
    options = options or captioner.settings(n_best=how.n_best)
    reader = ItemReader(captioner.encoder.preprocess, how, memory)
    queue = (
        ((item, reader.memory.join()) for item in batch) for batch in in_turn(items, how.batch_size)
    )
    for batch in captioner.captions_of(
        queue,
        lambda asked: reader.read(*asked),
        options,
        n_best=how.n_best,
        num_workers=how.num_workers,
    ):
        yield from (record.complete(found) for record, found in batch)


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
