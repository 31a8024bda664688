"""Brings the pixels of a batch to a device; a CUDA device decodes plain JPEG files itself.

torchvision hands the files to nvJPEG. Nothing but the files themselves decides which of them go
there, so the captions of an image do not depend on its company.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from threading import Lock
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from captioner.encoder.encoder import Encoder
from captioner.encoder.given_features import GivenFeatures
from captioner.encoder.without_compiler import import_torchvision
from captioner.errors import ImageError, is_shortage
from captioner.images.plain_jpeg import Jpeg
from captioner.system.gpu import SideStream, uses

TOGETHER = 2**26  # pixels that are decoded together: 200 MB of the device's memory
RGB = 3  # torchvision's number of the mode


def decodes_there(encoder: Encoder) -> bool:
    """Return whether a CNN's device decodes JPEG files and resizes them as the CNN wants."""
    if not uses("nvjpeg", encoder.device) or isinstance(encoder, GivenFeatures):
        return False
    return encoder.preprocess.resizes_tensors and _works(encoder.device)


def arithmetic_of_files(encoder: Encoder) -> str:
    """Return the arithmetic of captions of files: "bf16 on cuda, nvjpeg" if nvJPEG decodes."""
    return f"{encoder.arithmetic}{', nvjpeg' if decodes_there(encoder) else ''}"


@cache
def _works(device: torch.device) -> bool:
    """Whether torchvision has a decoder for a device."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    with SideStream(device).current():
        return decode_jpegs([file.getvalue()], device) != [None]


def decode_jpegs(files: Sequence[bytes], device: torch.device) -> list[Tensor | None]:
    """Decode JPEG files on a device, a CUDA device by nvJPEG.

    The current stream should have nothing else to do: nvJPEG writes at once, also into memory that
    an earlier kernel is still to read.

    Args:
        files: if one cannot be decoded, halves of them are tried, down to one file.
        device: of the results.

    Returns:
        For each file its RGB pixels, uint8 (3, H, W); None if it cannot be decoded there.
    """
    data = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
    try:
        return _decode(data, device)
    except (RuntimeError, AttributeError):  # the latter: torchvision has no decoder
        if len(files) == 1:
            return [None]
    half = len(files) // 2
    return [*decode_jpegs(files[:half], device), *decode_jpegs(files[half:], device)]


def _decode(data: list[Tensor], device: torch.device) -> list[Tensor | None]:
    # `torchvision.io.decode_jpeg` is the same, and warns that TorchCodec will take its place.
    import_torchvision()
    if device.type == "cuda":
        return list(torch.ops.image.decode_jpegs_cuda(data, RGB, device))
    return [torch.ops.image.decode_jpeg(each, RGB, False) for each in data]


class Arrived(NamedTuple):
    """The pixels of an image on the device."""

    pixels: Tensor  # uint8 (3, S, S)
    blank: bool = False  # of a file that the device decoded; see `Preprocess.is_blank`


class Arrivals:
    """Brings pixels and JPEG files of a batch to a device, on a stream of its own.

    Several threads may call it; one at a time works.
    """

    def __init__(self, encoder: Encoder, read: Callable[[Jpeg], Tensor]):
        """Use `read` for files that the device cannot decode: to pixels, or an `ImageError`."""
        self._device, self._encoder, self._read = encoder.device, encoder, read
        self._stream, self._lock = SideStream(encoder.device), Lock()

    @torch.inference_mode()
    def bring(self, batch: Sequence[Tensor | Jpeg | None]) -> list[Arrived | ImageError | None]:
        """Return the images of a batch in their order, on the device and computed."""
        found: list[Arrived | ImageError | None] = [None] * len(batch)
        with self._lock, self._stream.current():
            here = {place: each for place, each in enumerate(batch) if isinstance(each, Tensor)}
            if here:
                for place, pixels in zip(here, self._copied([*here.values()]), strict=True):
                    found[place] = Arrived(pixels)
            files = {place: each for place, each in enumerate(batch) if isinstance(each, Jpeg)}
            for places in _pieces(files):
                decoded = self._within_memory([files[place] for place in places])
                for place, result in zip(places, decoded, strict=True):
                    found[place] = result
            self._stream.wait()
        return found

    def _copied(self, pixels: Sequence[Tensor]) -> Sequence[Tensor]:
        """Copy equal tensors to the device, in one piece of memory that it reads by itself."""
        shape = (len(pixels), *pixels[0].shape)
        pinned = torch.empty(shape, dtype=pixels[0].dtype, pin_memory=self._device.type == "cuda")
        torch.stack([*pixels], out=pinned)
        return pinned.to(self._device, non_blocking=True).unbind()

    def _within_memory(self, files: Sequence[Jpeg]) -> list[Arrived | ImageError]:
        """Decode files; if memory runs out, halves of them, down to one file."""
        try:
            return self._decoded(files)
        except RuntimeError as error:
            if len(files) == 1 or not is_shortage(error):
                raise
        half = len(files) // 2
        return [*self._within_memory(files[:half]), *self._within_memory(files[half:])]

    def _decoded(self, files: Sequence[Jpeg]) -> list[Arrived | ImageError]:
        self._stream.wait()  # see `decode_jpegs`
        pictures = decode_jpegs([file.data for file in files], self._device)
        preprocess = self._encoder.preprocess
        results: list[Tensor | ImageError] = []
        for file, picture in zip(files, pictures, strict=True):
            try:
                pixels = self._read(file) if picture is None else preprocess.shrunk(picture)
                results.append(pixels.to(self._device))
            except ImageError as error:
                results.append(error)
        seen = [result for result in results if isinstance(result, Tensor)]
        blank = iter(preprocess.are_blank(torch.stack(seen)) if seen else [])
        return [
            Arrived(result, next(blank)) if isinstance(result, Tensor) else result
            for result in results
        ]


def _pieces(files: Mapping[int, Jpeg]) -> Iterator[list[int]]:
    """Yield the places of files that are decoded together."""
    piece: list[int] = []
    pixels = 0
    for place, file in files.items():
        pixels += file.width * file.height
        if piece and pixels > TOGETHER:
            yield piece
            piece, pixels = [], file.width * file.height
        piece.append(place)
    if piece:
        yield piece
