"""Images -> caption records on this machine: read ahead, encode in batches, search."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, cast

from captioner.captioning.sources import Item
from captioner.captioning.sources.features import FeatureRow
from captioner.captioning.sources.item import text_id
from captioner.config import DecodingConfig
from captioner.errors import ConfigError, ImageError, ImageErrorKind, checked_names, must_be
from captioner.images.decode import MAX_BYTES, MAX_PIXELS, read_file, read_image
from captioner.images.plain_jpeg import Jpeg, plain_jpeg
from captioner.system.batches import in_turn
from captioner.system.foreign import excerpt
from captioner.system.memory import Held, Memory
from captioner.text import Caption, Word

if TYPE_CHECKING:
    from torch import Tensor

    from captioner.captioner import Captioner
    from captioner.encoder.encoder import Encoder
    from captioner.encoder.nvjpeg import Arrived
    from captioner.pipeline import Gather, Pixels

MOST_WORKERS = 1024
DIGEST_BYTES = 16
BATCH_SIZE = 256  # enough to keep a GPU busy


@checked_names
@dataclass(frozen=True, slots=True)
class CaptioningOptions:
    """How to caption many images.

    Attributes:
        n_best: captions per image.
        batch_size: images per batch; reduced when memory runs out.
        num_workers: threads that read and decode and, on a CPU, encode and search; None: one per
            core.
        max_pixels: images with more pixels are refused.
        scaled_decoding: decode large JPEGs at 1/2, 1/4 or 1/8 of their size, but at no less than
            twice the CNN's input size: much faster; pixels (0 to 255) differ by less than 1.
        max_memory: bytes for reading and decoding images; None: `usual_limit`.
        words: fill `Caption.words`.
        maps: fill `Caption.words` with attention, and `Record.pixels`, for `draw_maps`; not with
            Ray.
    """

    n_best: int = 1
    batch_size: int = BATCH_SIZE
    num_workers: int | None = None
    max_pixels: int = MAX_PIXELS
    scaled_decoding: bool = False
    max_memory: int | None = None
    words: bool = False
    maps: bool = False

    def __post_init__(self) -> None:
        count = self.num_workers
        if count is not None and not (isinstance(count, int) and 1 <= count <= MOST_WORKERS):
            raise ConfigError(
                f"num_workers: must be 1 to {MOST_WORKERS:,}, given {excerpt(count, 60)}"
            )


@dataclass(frozen=True, slots=True)
class Record:
    """The captions of one image, or its error.

    Attributes:
        file_name: as the user or a table named the image.
        captions: best first; empty if the image failed.
        error: message, if the image failed.
        kind: error code for programs, if the image failed.
        blank: the CNN sees one colour only, so the captions say nothing about the image.
        digest: 16 bytes that identify the content of the file, if asked for.
        given_id: id of the image in a table, as of an `Item`; empty if there is none.
        pixels: what the CNN sees, uint8 (3, S, S), if asked for.
        visible: share of the image's area in `pixels`, 0 to 1; the crop hides the rest.
    """

    file_name: str
    captions: tuple[Caption, ...] = ()
    error: str | None = None
    kind: ImageErrorKind | None = None
    blank: bool = False
    digest: bytes = field(default=b"", compare=False)
    given_id: str = ""
    pixels: Tensor | None = field(default=None, compare=False, repr=False)
    visible: float = field(default=1.0, compare=False)

    @property
    def image_id(self) -> str:
        """The id in the table; without a table, the file name without folder and extension."""
        return text_id(self.given_id) or self.given_id or Path(self.file_name).stem

    @property
    def caption(self) -> str:
        """The best caption; empty if the image failed."""
        return self.captions[0].text if self.captions else ""

    @property
    def status(self) -> str:
        """`ok`, `blank` or `error`."""
        return "error" if self.error else "blank" if self.blank else "ok"

    def complete(self, result: list[Caption] | ImageError | None) -> Record:
        """Return the record with captions or an error added; None: unchanged."""
        if result is None:
            return self
        if isinstance(result, ImageError):
            return replace(self, error=str(result), kind=result.kind)
        return replace(self, captions=tuple(result))

    def worded(self, wording: Callable[[str], str]) -> Record:
        """Return the record with its captions written out in another way."""
        captions = (replace(caption, text=wording(caption.text)) for caption in self.captions)
        return replace(self, captions=tuple(captions))

    def to_json(self) -> str:
        """Return all fields except the name and the attention, without loss, for `from_json`."""
        captions: list[list[Any]] = []
        for c in self.captions:
            captions.append([c.text, c.log_prob, c.score, c.finished])
            if c.words:
                captions[-1].append([[word.text, word.log_prob] for word in c.words])
        return json.dumps([captions, self.error, self.kind, self.blank])

    @classmethod
    def from_json(cls, file_name: str, text: str) -> Record:
        """Read the output of `to_json`."""
        rows, *rest = json.loads(text)
        captions = []
        for line, log_prob, score, finished, *more in rows:
            words = tuple(Word(*word) for word in (more[0] if more else ()))
            captions.append(Caption(line, log_prob, score, finished, words))
        return cls(file_name, tuple(captions), *rest)


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts of a job."""

    images: int
    failed: int
    fresh: int  # images captioned or failed in this run; earlier runs did the others
    errors: Path | str | None = None  # file, or its address, that lists the failures
    blank: int = 0  # images in which the CNN sees one colour only
    new_failed: int = 0  # failures that the file did not list before this run
    renamed: int = 0  # see `Writer`
    unsure: int = 0  # see `Writer`

    @property
    def captioned(self) -> int:
        """Number of images that have a caption."""
        return self.images - self.failed


class ItemReader:
    """Reads and decodes images within a memory limit."""

    def __init__(self, encoder: Encoder, how: CaptioningOptions, memory: Memory | None = None):
        from captioner.encoder.nvjpeg import Arrivals, decodes_there  # imports torch
        from captioner.system.gpu import uses

        self.encoder, self.maps = encoder, how.maps
        self.row = getattr(encoder, "row", None)  # of a model of features
        self.max_pixels, self.scaled = how.max_pixels, how.scaled_decoding
        self.memory = memory or Memory(how.max_memory)
        self._leaves_jpegs = decodes_there(encoder)  # to `gather`
        self._arrivals = Arrivals(encoder, self._by_pillow)
        on_the_way = self._leaves_jpegs or uses("streams", encoder.device)
        self.gather: Gather[Record] | None = self._gather if on_the_way else None

    def read(
        self,
        item: Item,
        ticket: int,
        is_wanted: Callable[[bytes], bool] | None = None,
    ) -> tuple[Record, Pixels]:
        """Read an image, and decode it if `is_wanted` is None or accepts the digest of its content.

        The ticket is from `memory.join` and is released here. Pixels are uint8 (3, S, S); for a
        model of features, they are the features, fp16 (F,). A `Jpeg` is left to `gather`.

        Raises:
            ModelError: for a picture, if the model sees no pictures.
        """
        try:
            return self._read(item, partial(self.memory.claim, number=ticket), is_wanted)
        finally:  # the bytes and the picture are freed by now
            if isinstance(item.source, Held):
                item.source.give_back()
            self.memory.leave(ticket)

    def _read(
        self,
        item: Item,
        claim: Callable[[int], None],
        is_wanted: Callable[[bytes], bool] | None,
    ) -> tuple[Record, Pixels]:
        record = Record(item.name, given_id=item.image_id)
        try:
            content = _content(item, claim)
            if is_wanted:
                record = replace(record, digest=digest_of(content))
                if not is_wanted(record.digest):
                    return record, None
            if isinstance(item.source, FeatureRow):
                return record, self._features(item.source)
            if self._leaves_jpegs and (jpeg := plain_jpeg(content, self.max_pixels)):
                return record, jpeg
            preprocess = self.encoder.preprocess
            at_least = preprocess.enough if self.scaled else None
            picture = read_image(
                content, max_pixels=self.max_pixels, at_least=at_least, claim=claim
            )
            pixels = preprocess.pixels(picture)
            if self.maps:
                visible = preprocess.visible(*picture.size)
                record = replace(record, pixels=pixels, visible=visible)
            return replace(record, blank=preprocess.is_blank(pixels)), pixels
        except ImageError as error:
            return record.complete(error), None

    def _gather(self, batch: list[tuple[Record, Pixels]]) -> list[tuple[Record, Pixels]]:
        """Bring the pixels of a batch to the device, and complete the records of JPEG files."""
        from captioner.encoder.nvjpeg import Arrived  # imports torch

        arrived = self._arrivals.bring([pixels for _, pixels in batch])
        return [
            (self._seen(record, pixels, found), found.pixels)
            if isinstance(found, Arrived)
            else (record.complete(found), None)
            for (record, pixels), found in zip(batch, arrived, strict=True)
        ]

    def _seen(self, record: Record, source: Pixels, found: Arrived) -> Record:
        """Complete the record of an image whose pixels have arrived."""
        if not isinstance(source, Jpeg):
            return record
        if self.maps:
            visible = self.encoder.preprocess.visible(source.width, source.height)
            record = replace(record, pixels=found.pixels.cpu(), visible=visible)
        return replace(record, blank=found.blank)

    def _by_pillow(self, file: Jpeg) -> Tensor:
        """Decode a file that the device does not."""
        picture = read_image(file.data, max_pixels=self.max_pixels)
        return self.encoder.preprocess.pixels(picture)

    def _features(self, source: FeatureRow) -> Tensor:
        """Return the features of an image that another program made."""
        if self.row is None:
            raise ImageError("features, and this model sees pictures", kind="not_an_image")
        try:
            found: Tensor = self.row(source.values())
        except ValueError as error:
            raise ImageError(str(error), kind="not_an_image") from error
        return found


def digest_of(content: bytes) -> bytes:
    """Return the digest of a file's content."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def digest_of_item(item: Item, memory: Memory) -> bytes:
    """Return the digest of an image's content; empty if it cannot be read."""
    ticket = memory.join()
    try:
        return digest_of(_content(item, partial(memory.claim, number=ticket)))
    except ImageError:
        return b""
    finally:
        memory.leave(ticket)


@checked_names
def caption_files(
    captioner: Captioner,
    items: Iterable[Item],
    options: DecodingConfig | None = None,
    how: CaptioningOptions | None = None,
    *,
    memory: Memory | None = None,
    digests: bool = False,
) -> Iterator[Record]:
    """Caption images; a bad image becomes an error record.

    Args:
        captioner: on its device.
        items: images, or failures to pass on as records. Consumed lazily: memory does not grow with
            the number of images.
        options: search settings, such as `captioner.settings(beam_size=5)`; None: the model's.
        how: captioning settings; None: the defaults.
        memory: memory limit for reading and decoding; pass the object given to `list_images`.
            None: a new one.
        digests: fill `Record.digest`.

    Yields:
        One record per item, in order.

    Raises:
        ConfigError: if a number is out of range, or the options do not fit the model or n_best.
    """
    from captioner.captioner import Captioner  # imports torch

    must_be("captioner", captioner, Captioner)
    must_be("items", items, Iterable)
    must_be("options", options, DecodingConfig, NoneType)
    must_be("how", how, CaptioningOptions, NoneType)
    must_be("memory", memory, Memory, NoneType)
    how = how or CaptioningOptions()
    options = options or captioner.settings(n_best=how.n_best)
    reader = ItemReader(captioner.encoder, how, memory)
    queue = (
        ((item, reader.memory.join()) for item in batch)
        for batch in in_turn(map(_item, items), how.batch_size)
    )
    for batch in captioner.captions_of(
        queue,
        lambda queued: reader.read(*queued, (lambda _: True) if digests else None),
        options,
        n_best=how.n_best,
        words=how.words,
        maps=how.maps,
        gather=reader.gather,
        num_workers=how.num_workers,
    ):
        yield from (record.complete(captions) for record, captions in batch)


def _item(item: object) -> Item:
    must_be("items", item, Item)
    return cast(Item, item)


def _content(item: Item, claim: Callable[[int], None]) -> bytes:
    source = item.source
    if isinstance(source, ImageError):
        raise source
    if isinstance(source, bytes):
        return source
    if isinstance(source, Path):
        with suppress(OSError, ValueError):  # `read_file` reports the error
            claim(min(source.stat().st_size, MAX_BYTES))
        return read_file(source)
    if not isinstance(source, Held):
        claim(source.size)
    return source.read_bytes()
