"""Features that another program made, as items: for a model that learnt from such features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from captioner.captioning.sources.item import Item, failure
from captioner.errors import DataError, ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from captioner.data.feature_file import FeatureFile

ENDINGS = (".npy", ".npz", ".h5", ".hdf5", ".safetensors")  # of `data.feature_file`


class Held(NamedTuple):
    """The features of one image that was read from a file; travels to other processes."""

    path: Path
    shape: tuple[int, ...]
    features: NDArray[Any]

    def read(self, _: str) -> NDArray[Any]:
        """Return them."""
        return self.features


@dataclass(frozen=True, slots=True, eq=False)
class FeatureRow:
    """The features of one image in a file."""

    file: FeatureFile | Held
    key: str

    def __str__(self) -> str:
        return f"{self.file.path}/{self.key}"

    @property
    def size(self) -> int:
        """Bytes of the features, at most 4 a number."""
        rows, columns = (1, *self.file.shape)[-2:]
        return 4 * rows * columns

    def values(self) -> NDArray[Any]:
        """Return the features, (F,) or (P, C), or raise `ImageError`."""
        try:
            return self.file.read(self.key)
        except DataError as error:
            raise ImageError(str(error), kind="damaged") from error

    def held(self) -> FeatureRow:
        """Return the same with the features read, or raise `ImageError`."""
        return replace(self, file=Held(self.file.path, self.file.shape, self.values()))

    def read_bytes(self) -> bytes:
        """Return the content, or raise `ImageError`."""
        return self.values().tobytes()


def feature_items(name: str) -> Iterator[Item]:
    """Yield each image of a file of features, or a failure for a file that is none."""
    from captioner.data.feature_file import FeatureFile  # imports NumPy

    try:
        file = FeatureFile(Path(name))
    except DataError as error:
        yield failure(name, str(error).removeprefix(f"{name}: "), "unreadable")
        return
    for key in file.index:
        yield Item(f"{name}/{key}", FeatureRow(file, key), image_id=key)
