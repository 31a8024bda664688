"""Images that are no files of their own: read when needed, and taken wherever a path is."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioner.data.feature_store import FeatureStore
from captioner.data.fill import fill_store
from captioner.encoder.encoder import FrozenEncoder
from captioner.errors import ImageError
from captioner.images.accept import is_one, snapshot, to_picture
from captioner.images.content import Content, Slice
from captioner.images.decode import MAX_BYTES, read_file, read_image


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), np.uint8)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class Cell:
    """A content of another kind, as of a table."""

    row: int
    size: int = 2000

    def __str__(self) -> str:
        return f"table.parquet/row {self.row}"

    def read_bytes(self) -> bytes:
        if self.row < 0:
            raise ImageError("no such row", kind="missing")
        return png(self.row)


@pytest.fixture
def part(tmp_path: Path) -> Slice:
    (tmp_path / "a.tar").write_bytes(b"before" + png(7) + b"after")
    return Slice(tmp_path / "a.tar", 6, len(png(7)), "./b/7.png")


def test_a_slice_is_its_part_of_the_file(part: Slice) -> None:
    assert isinstance(part, Content)
    assert part.read_bytes() == read_file(part) == png(7)
    assert str(part) == f"{part.path}/b/7.png"
    part.path.write_bytes(b"short")
    with pytest.raises(ImageError, match="truncated"):
        part.read_bytes()
    part.path.unlink()
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        read_file(part)


def test_contents_are_read_like_paths_and_bytes(part: Slice) -> None:
    for content in (part, Cell(7)):
        assert is_one(content) and snapshot(content) is content
        wanted = read_image(png(7)).tobytes()
        assert read_image(content).tobytes() == to_picture(content).tobytes() == wanted
    with pytest.raises(ImageError, match=r"table.parquet/row -1: no such row"):
        to_picture(Cell(-1))
    with pytest.raises(ImageError, match="more than the limit"):
        read_file(Cell(7, size=MAX_BYTES + 1))


def test_the_store_keeps_features_by_content(
    tiny_encoder: FrozenEncoder, tmp_path: Path, part: Slice
) -> None:
    (tmp_path / "7.png").write_bytes(png(7))
    images = [tmp_path / "7.png", part, Cell(7), Cell(8), Cell(-1)]
    store = FeatureStore.for_encoder(tiny_encoder, tmp_path / "features")
    keys, broken = fill_store(store, tiny_encoder, images, say=lambda _: None)
    assert keys[images[0]] == keys[part] == keys[Cell(7)] != keys[Cell(8)]
    assert len(store) == 2
    assert {str(image): str(error) for image, error in broken.items()} == {
        "table.parquet/row -1": "no such row"
    }
