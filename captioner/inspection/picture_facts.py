"""Looks at every picture of a data set: headers, or all pixels; the same content; the broken ones.

Two files have the same content if their size, their first bytes and then their digests agree, so
that few files are read whole.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from captioner.data.dataset import Example
from captioner.errors import ImageError
from captioner.images.content import ImageFile
from captioner.images.decode import Header, is_one_colour, opened, read_header, read_image
from captioner.inspection.caption_facts import Range
from captioner.system.batches import batched
from captioner.system.workers import Workers, workers

T = TypeVar("T")
R = TypeVar("R")
START = 4096  # bytes that are compared first
BATCH = 256  # pictures read together
SIDE = 8  # of the difference hash: 64 bits
SHORT = 9 * SIDE  # pixels of the shorter side that are enough for it
# Pictures that look the same: 97 of 100 photographs and their copies with JPEG quality 50.
MOST_BITS = 3  # of the hash that differ
MOST_COLOUR = 3.5  # of 255, the mean difference of the colours
WINDOW = 64  # pictures of similar hash and brightness that one is compared with
GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue


class Look(NamedTuple):
    """What was seen of one picture."""

    content: bytes  # equal for equal files; unequal files may agree if `whole` is not set
    header: Header | None = None  # None: the picture is broken
    reason: str = ""  # why it is broken
    small: NDArray[np.uint8] | None = None  # its colours, (SIDE, SIDE + 1, 3), if decoded
    blank: bool = False  # one colour, if decoded


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """The pictures of a data set; groups are in its order."""

    count: int  # different files or contents
    decoded: bool  # every pixel was read, else the headers
    formats: dict[str, int]
    modes: dict[str, int]
    width: Range | None  # pixels; None: all are broken
    height: Range | None
    broken: list[tuple[ImageFile, str]]  # with the reason
    blank: list[ImageFile]  # of one colour; only if decoded
    same: list[list[Example]]  # groups with the same content
    alike: list[list[Example]]  # groups that look the same; only if decoded

    @property
    def copies(self) -> int:
        """The number of images that have the content of an earlier one."""
        return sum(len(group) - 1 for group in self.same)

    @property
    def leaks(self) -> list[list[Example]]:
        """The groups of the same content that stand in several splits."""
        return [group for group in self.same if in_several_splits(group)]


def in_several_splits(group: Iterable[Example]) -> bool:
    """Return whether examples are of more than one split."""
    return len({example.split for example in group}) > 1


def look_at_pictures(examples: Sequence[Example], *, decode: bool) -> PictureFacts:
    """Read the headers of all pictures, or decode them all; pictures are not kept.

    A picture whose header is bad is decoded, as that gives the reason.
    """
    images = list(dict.fromkeys(example.image for example in examples))
    with workers(None, torch.device("cpu")) as crew:
        looks = dict(zip(images, _looks(crew, images, decode), strict=True))
        sound = {image: look for image, look in looks.items() if look.header}
        contents = {image: look.content for image, look in sound.items()}
        if not decode:
            maybe = list(chain.from_iterable(_groups(contents)))
            contents |= zip(maybe, _ahead(crew, _digest, maybe), strict=True)
    by_content: dict[bytes, list[Example]] = defaultdict(list)
    for example in examples:
        if example.image in contents:
            by_content[contents[example.image]].append(example)
    # Of pictures with the same content, the first stands for all.
    firsts = {group[0].image: group[0] for group in by_content.values()} if decode else {}
    small = {image: look.small for image in firsts if (look := sound[image]).small is not None}
    headers = [look.header for look in sound.values() if look.header]
    return PictureFacts(
        count=len(images),
        decoded=decode,
        formats=dict(Counter(header.format for header in headers).most_common()),
        modes=dict(Counter(header.mode for header in headers).most_common()),
        width=Range.of([header.width for header in headers]) if headers else None,
        height=Range.of([header.height for header in headers]) if headers else None,
        broken=[(image, look.reason) for image, look in looks.items() if not look.header],
        blank=[image for image, look in sound.items() if look.blank],
        same=[group for group in by_content.values() if len(group) > 1],
        alike=[[firsts[image] for image in group] for group in _alike(small)],
    )


def _looks(crew: Workers, images: Sequence[ImageFile], decode: bool) -> Iterator[Look]:
    looks = _ahead(crew, partial(_look, decode=decode), images)
    yield from tqdm(looks, desc="pictures", total=len(images), unit="image", disable=None)


def _ahead(crew: Workers, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    return chain.from_iterable(crew.map_ahead(function, batched(items, BATCH)))


def _look(image: ImageFile, *, decode: bool) -> Look:
    content = b""
    try:
        with opened(image) as (file, size):
            if not decode:
                content = b"%d " % size + hashlib.blake2b(file.read(START)).digest()
                file.seek(0)
                try:
                    return Look(content, read_header(file))
                except ImageError:
                    file.seek(0)
            data = file.read()
        picture = read_image(data, at_least=SHORT)
    except ImageError as error:
        return Look(content, reason=str(error))
    return Look(
        content or hashlib.blake2b(data).digest(),
        _header(data, picture),
        small=np.asarray(picture.resize((SIDE + 1, SIDE), Image.Resampling.BOX)),
        blank=is_one_colour(picture),
    )


def _header(data: bytes, picture: Image.Image) -> Header:
    try:
        return read_header(io.BytesIO(data))
    except ImageError:  # a PNG with a text that Pillow refuses, but `read_image` leaves out
        return Header("PNG", picture.mode, *picture.size)


def _digest(image: ImageFile) -> bytes:
    try:
        with opened(image) as (file, _):
            return hashlib.blake2b(file.read()).digest()
    except ImageError:  # it went since its header was read
        return str(image).encode("utf-8", "surrogatepass")


def _groups(keys: Mapping[ImageFile, Hashable]) -> list[list[ImageFile]]:
    """Return the images of each key that several have."""
    groups: dict[Hashable, list[ImageFile]] = defaultdict(list)
    for image, key in keys.items():
        groups[key].append(image)
    return [group for group in groups.values() if len(group) > 1]


def _alike(small: Mapping[ImageFile, NDArray[np.uint8]]) -> list[list[ImageFile]]:
    """Return the groups of pictures with nearly the same difference hash and colours.

    Hashes that differ in at most three of 64 bits agree in one quarter of the bits or more. Of a
    quarter that very many pictures share, only those of similar brightness are compared.

    Source: N. Krawetz, "Kind of like that", 2013.
    """
    images = list(small)
    colours = np.array([*small.values()], np.int16).reshape(-1, SIDE, SIDE + 1, 3)
    grey = colours @ np.array(GREY)
    bits = (grey[:, :, 1:] > grey[:, :, :-1]).reshape(-1, SIDE * SIDE)
    quarters = np.packbits(bits, axis=1).view(np.uint16)  # (N, 4)
    group = list(range(len(images)))  # of each picture, an earlier one of its group, or itself

    def first(number: int) -> int:
        while group[number] != number:
            number = group[number]
        return number

    for quarter in quarters.T:
        order = np.lexsort((grey.mean((1, 2)), quarter))
        for step in range(1, min(WINDOW, len(order))):
            a, b = order[:-step], order[step:]
            near = quarter[a] == quarter[b]
            if not near.any():
                break
            a, b = a[near], b[near]
            near = (bits[a] != bits[b]).sum(1) <= MOST_BITS
            a, b = a[near], b[near]
            near = np.abs(colours[a] - colours[b]).mean((1, 2, 3)) <= MOST_COLOUR
            for pair in zip(a[near].tolist(), b[near].tolist(), strict=True):
                low, high = sorted(map(first, pair))
                group[high] = low
    return _groups(dict(zip(images, map(first, range(len(images))), strict=True)))
