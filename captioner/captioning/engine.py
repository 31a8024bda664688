"""The work of a job without its files: batches of listed images -> finished records.

`job` and `parts` list the images and keep what is finished. An engine captions: `Local` on this
machine, `ray` on a cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from captioner.captioning.journal import Done
from captioner.captioning.records import CaptioningOptions, ItemReader, Record
from captioner.captioning.sources import Item
from captioner.config import DecodingConfig
from captioner.system.memory import Memory

if TYPE_CHECKING:
    from captioner.captioner import Captioner
    from captioner.captioning.maps import MapFolder
    from captioner.pipeline import Gather, Pixels


class Listed(NamedTuple):
    """One image of the list."""

    position: int
    item: Item
    known: frozenset[bytes] = frozenset()  # digests of content that the job has a record of


Batches: TypeAlias = "Iterator[Iterator[Listed]]"
Finished: TypeAlias = "tuple[list[int], list[Done]]"  # one batch, with positions in the list


class Engine(Protocol):
    """What captions the batches of a job."""

    @property
    def arithmetic(self) -> str:
        """Number format and device; the same images give the same bytes in it."""

    def caption(self, batches: Batches) -> Iterator[Finished]:
        """Caption the images without a known record; yield batches in the order of the list."""


@dataclass(frozen=True, slots=True)
class _Image:
    """An image that was read; `is_known`: the job has its record."""

    position: int
    is_known: bool
    record: Record


@dataclass(frozen=True, slots=True)
class Local:
    """Captions on this machine; the model is loaded for the first batch."""

    load: Callable[[], Captioner]
    options: DecodingConfig
    how: CaptioningOptions
    memory: Memory
    maps: MapFolder | None = None  # draws the images, whose captions need `how.maps`

    @property
    def arithmetic(self) -> str:
        """Number format and device of the model."""
        return arithmetic_of(self.load())

    def caption(self, batches: Batches) -> Iterator[Finished]:
        """Caption the images without a known record; yield batches in the order of the list."""
        captioner, options, how = self.load(), self.options, self.how
        # Random draws depend on the whole batch, so a batch is sampled again completely or not at
        # all.
        together = options.search == "sample"
        reader = ItemReader(captioner.encoder, how, self.memory)

        def read(queued: tuple[Listed, int]) -> tuple[_Image, Pixels]:
            (position, item, known), ticket = queued
            record, pixels = reader.read(
                item, ticket, lambda digest: together or digest not in known
            )
            return _Image(position, record.digest in known, record), pixels

        queue = (((listed, reader.memory.join()) for listed in batch) for batch in batches)
        for batch in captioner.captions_of(
            queue,
            read,
            options,
            n_best=how.n_best,
            words=how.words,
            maps=how.maps,
            needed=lambda images: not all(image.is_known for image in images),
            gather=reader.gather and partial(_gather, reader.gather),
            num_workers=how.num_workers,
        ):
            skip = not together or all(image.is_known for image, _ in batch)
            done = []
            for image, captions in batch:
                is_done = captions is None and image.is_known and skip
                record = None if is_done else image.record.complete(captions)
                known = image.record
                if self.maps:  # before the job has the record: a killed job loses no map
                    self.maps.add(record or known)
                done.append(Done(known.file_name, known.digest, record, known.given_id))
            yield [image.position for image, _ in batch], done


def arithmetic_of(captioner: Captioner) -> str:
    """Return the arithmetic of files on the captioner's device."""
    from captioner.encoder.nvjpeg import arithmetic_of_files  # imports torch

    return arithmetic_of_files(captioner.encoder)


def _gather(
    gather: Gather[Record], batch: list[tuple[_Image, Pixels]]
) -> list[tuple[_Image, Pixels]]:
    """Complete the records of a batch; see `ItemReader`."""
    records = gather([(image.record, pixels) for image, pixels in batch])
    return [
        (replace(image, record=record), pixels)
        for (image, _), (record, pixels) in zip(batch, records, strict=True)
    ]
