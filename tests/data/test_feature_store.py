"""The feature store: one row per picture, whatever crashes, whoever else is writing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import Tensor, nn

from captioner.data.feature_store import (
    MIRRORED,
    PLAIN,
    FeatureStore,
    features_folder,
    image_key,
)
from captioner.data.fill import fill_store
from captioner.encoder.encoder import FrozenEncoder
from captioner.errors import ConfigError, DataError, ModelError
from captioner.images.decode import MAX_PIXELS, read_image
from captioner.system.ownership import begin

Photos = Callable[..., list[Path]]
COUNT = 6


def quiet(_: str) -> None:
    pass


@pytest.fixture
def counted(tiny_encoder: FrozenEncoder) -> Iterator[list[int]]:
    """The sizes of the batches that the encoder is asked for."""
    sizes: list[int] = []
    hook = tiny_encoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    yield sizes
    hook.remove()


@pytest.fixture
def store(tiny_encoder: FrozenEncoder, tmp_path: Path) -> FeatureStore:
    return FeatureStore.for_encoder(tiny_encoder, tmp_path / "features")


def features_of(encoder: FrozenEncoder, paths: list[Path], mirrored: bool = False) -> np.ndarray:
    images = [read_image(path) for path in paths]
    if mirrored:
        images = [ImageOps.mirror(image) for image in images]
    pixels = torch.stack([encoder.spec.preprocess.pixels(image) for image in images])
    return encoder(pixels).half().numpy()


def close(given: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(given.astype(float), wanted.astype(float), rtol=5e-3, atol=5e-3)


def test_rows_round_trip_in_any_order(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "new" / "store", 3)
    rows = np.arange(12, dtype=np.float16).reshape(4, 3)
    keys = [image_key(bytes([i])) for i in range(4)]
    store.append(keys[:1], rows[:1])
    store.append(keys[1:], rows[1:])
    for reader in (store, FeatureStore(tmp_path / "new" / "store", 3)):
        assert len(reader) == 4
        assert all(key in reader for key in keys)
        assert image_key(b"other") not in reader
        given = reader.rows([keys[2], keys[0], keys[2]])
        assert given.dtype == np.float16
        np.testing.assert_array_equal(given, rows[[2, 0, 2]])
        assert reader.rows([]).shape == (0, 3)
        with pytest.raises(KeyError):
            reader.rows([image_key(b"other")])


def test_a_reader_sees_new_rows_after_refresh(tmp_path: Path) -> None:
    reader, writer = FeatureStore(tmp_path, 2), FeatureStore(tmp_path, 2)
    writer.append([image_key(b"a")], np.ones((1, 2), np.float16))
    assert len(reader) == 0
    reader.refresh()
    np.testing.assert_array_equal(reader.rows([image_key(b"a")]), [[1, 1]])


def test_keys_follow_content_and_view() -> None:
    keys = {image_key(data, view) for data in (b"a", b"b") for view in (PLAIN, MIRRORED)}
    assert len(keys) == 4
    assert {len(key) for key in keys} == {16}
    assert image_key(b"a") == image_key(b"a", PLAIN)


def test_rows_equal_the_encoders_word(
    store: FeatureStore, tiny_encoder: FrozenEncoder, photos: Photos, counted: list[int]
) -> None:
    paths = photos(COUNT)
    keys, broken = fill_store(store, tiny_encoder, paths, batch_size=4, say=quiet)
    assert broken == {}
    assert list(keys) == paths
    assert counted == [4, 2]
    close(store.rows([keys[path][0] for path in paths]), features_of(tiny_encoder, paths))


def test_blank_pictures_are_said(
    store: FeatureStore, tiny_encoder: FrozenEncoder, photos: Photos, tmp_path: Path
) -> None:
    paths = [tmp_path / "white.png", tmp_path / "black.png"]
    for path in paths:
        Image.new("RGB", (50, 50), path.stem).save(path)
    said: list[str] = []
    fill_store(store, tiny_encoder, [*photos(2), *paths], batch_size=1, say=said.append)
    assert said[1:] == [
        f"features: 2 image(s) are blank, the CNN sees one colour only; first: {paths[0]}"
    ]


def test_mirrored_rows_equal_encoding_of_the_mirrored_picture(
    store: FeatureStore, tiny_encoder: FrozenEncoder, photos: Photos
) -> None:
    paths = photos(3)
    keys, _ = fill_store(store, tiny_encoder, paths, mirrored=True, say=quiet)
    assert len(store) == 6
    plain = store.rows([keys[path][0] for path in paths])
    flipped = store.rows([keys[path][1] for path in paths])
    close(plain, features_of(tiny_encoder, paths))
    close(flipped, features_of(tiny_encoder, paths, mirrored=True))
    assert np.abs(plain - flipped).max() > 0.05  # these pictures are not symmetric


def test_mirroring_later_encodes_the_mirrored_views_alone(
    store: FeatureStore, tiny_encoder: FrozenEncoder, photos: Photos, counted: list[int]
) -> None:
    paths = photos(4)
    fill_store(store, tiny_encoder, paths[:3], say=quiet)
    fill_store(store, tiny_encoder, paths, mirrored=True, say=quiet)
    assert counted == [3, 1, 4]
    assert len(store) == 8


def test_files_with_the_same_content_share_a_row(
    store: FeatureStore, tiny_encoder: FrozenEncoder, photos: Photos, counted: list[int]
) -> None:
    first, second = photos(2)
    copies = [first.with_name(f"copy{i}.png") for i in range(3)]
    for copy in copies:
        shutil.copy(first, copy)
    keys, _ = fill_store(store, tiny_encoder, [first, *copies, second], batch_size=2, say=quiet)
    assert len(store) == 2
    assert sum(counted) == 2
    assert {keys[copy] for copy in copies} == {keys[first]}
    assert keys[first] != keys[second]


def test_what_is_stored_is_not_encoded_again_and_it_says_so(
    store: FeatureStore, tiny_encoder: FrozenEncoder, photos: Photos, counted: list[int]
) -> None:
    said: list[str] = []
    first, _ = fill_store(store, tiny_encoder, photos(4), say=said.append)
    assert said == [f"features: 4 images to encode (0.0 MB in {store.folder}), 0 already stored"]
    counted.clear()
    # Names mean nothing: the same pictures elsewhere are known.
    moved = [path.rename(path.with_name(f"moved-{path.name}")) for path in first]
    again, _ = fill_store(store, tiny_encoder, moved, say=said.append)
    assert counted == []
    assert len(said) == 1
    assert list(again.values()) == list(first.values())
    fill_store(store, tiny_encoder, [*moved, *photos(2, start=4)], say=said.append)
    assert counted == [2]
    assert "2 images to encode" in said[1]
    assert "4 already stored" in said[1]


@pytest.fixture(scope="module")
def filled(
    tiny_encoder: FrozenEncoder,
    tmp_path_factory: pytest.TempPathFactory,
    picture: Callable[..., Image.Image],
) -> tuple[list[Path], FeatureStore, list[bytes]]:
    folder = tmp_path_factory.mktemp("filled")
    paths = [folder / f"{i}.png" for i in range(COUNT)]
    for i, path in enumerate(paths):
        picture(i).save(path)
    store = FeatureStore.for_encoder(tiny_encoder, folder / "features")
    # One at a time, so that rows do not depend on who else was in the batch.
    keys, _ = fill_store(store, tiny_encoder, paths, batch_size=1, say=quiet)
    return paths, store, [keys[path][0] for path in paths]


ROW, KEY, SUM = 1024 * 2, 16, 8


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, COUNT * ROW),
    keys=st.integers(0, COUNT * KEY),
    sums=st.integers(0, COUNT * SUM),
)
def test_a_store_cut_anywhere_is_filled_up_to_the_same_rows(
    filled: tuple[list[Path], FeatureStore, list[bytes]],
    tiny_encoder: FrozenEncoder,
    counted: list[int],
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    keys: int,
    sums: int,
) -> None:
    paths, whole, order = filled
    root = tmp_path_factory.mktemp("cut")
    folder = root / whole.folder.name
    begin(folder, "store")
    for name, length in (("rows.f16", rows), ("rows.key", keys), ("rows.sum", sums)):
        (folder / name).write_bytes((whole.folder / name).read_bytes()[:length])
    store = FeatureStore.for_encoder(tiny_encoder, root)
    kept = min(rows // ROW, keys // KEY, sums // SUM)
    assert len(store) == kept
    np.testing.assert_array_equal(store.rows(order[:kept]), whole.rows(order[:kept]))
    counted.clear()
    fill_store(store, tiny_encoder, paths, batch_size=1, say=quiet)
    assert sum(counted) == COUNT - kept
    for reader in (store, FeatureStore.for_encoder(tiny_encoder, root)):
        np.testing.assert_array_equal(reader.rows(order), whole.rows(order))
    for name in ("rows.f16", "rows.key", "rows.sum"):
        assert (folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_run_that_dies_keeps_what_it_stored(
    store: FeatureStore, tiny_encoder: FrozenEncoder, photos: Photos, counted: list[int]
) -> None:
    paths = photos(COUNT)

    def die(*_: object) -> None:
        if len(counted) == 2:
            raise KeyboardInterrupt

    with tiny_encoder.register_forward_pre_hook(die), pytest.raises(KeyboardInterrupt):
        fill_store(store, tiny_encoder, paths, batch_size=2, say=quiet)
    counted.clear()
    fresh = FeatureStore(store.folder, store.feature_size)
    assert len(fresh) == 2
    keys, _ = fill_store(fresh, tiny_encoder, paths, batch_size=2, say=quiet)
    assert counted == [2, 2]
    close(fresh.rows([keys[path][0] for path in paths]), features_of(tiny_encoder, paths))


def test_broken_images_are_reported_and_the_rest_is_stored(
    store: FeatureStore, tiny_encoder: FrozenEncoder, photos: Photos, tmp_path: Path
) -> None:
    good = photos(3)
    text, missing, large = (tmp_path / name for name in ("text.png", "missing.png", "large.png"))
    text.write_text("not a picture")
    Image.new("1", (MAX_PIXELS + 1, 1)).save(large)
    paths = [text, good[0], missing, good[1], large, good[2]]
    # A batch of nothing but broken images must not stop the next.
    keys, broken = fill_store(store, tiny_encoder, paths, batch_size=1, mirrored=True, say=quiet)
    assert list(keys) == good
    assert len(store) == 6
    assert str(broken[text]).startswith("not an image")
    assert str(broken[missing]) == "cannot be read: No such file or directory"
    assert broken[large].kind == "too_large"


def test_no_readable_image_is_an_error_that_names_the_first(
    store: FeatureStore, tiny_encoder: FrozenEncoder, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    paths = [tmp_path / "missing.png", tmp_path / "text.png"]
    with pytest.raises(DataError, match=rf"no image could be read; first: {paths[0]}: cannot be"):
        fill_store(store, tiny_encoder, paths, say=quiet)
    with pytest.raises(DataError, match="not an image"):
        fill_store(store, tiny_encoder, paths[1:], say=quiet)
    with pytest.raises(DataError, match=r"^no image could be read$"):
        fill_store(store, tiny_encoder, [], say=quiet)


@pytest.mark.parametrize("value", [70_000.0, float("nan"), -float("inf")])
def test_features_that_fp16_cannot_hold_are_an_error_not_rows(
    value: float, make_encoder: Callable[..., FrozenEncoder], tmp_path: Path, photos: Photos
) -> None:
    class Spoil(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            features = images.flatten(1)[:, :8].clone()
            features[1, 3] = value
            return features

    encoder = make_encoder("shufflenet_v2_x0_5", image_size=32)
    encoder.network, encoder.feature_size = Spoil(), 8
    store = FeatureStore.for_encoder(encoder, tmp_path / "features")
    paths = photos(3)
    with pytest.raises(ModelError, match=re.escape(f"{paths[1]}: its features are not finite")):
        fill_store(store, encoder, paths, say=quiet)
    assert len(FeatureStore.for_encoder(encoder, tmp_path / "features")) == 0


FILL = """
import os, sys, time
from pathlib import Path
import torch
from captioner.data.feature_store import FeatureStore
from captioner.data.fill import fill_store
from captioner.encoder.encoder import FrozenEncoder
torch.set_num_threads(1)
root = Path(sys.argv[1])
encoder = FrozenEncoder.create("shufflenet_v2_x0_5", "none", image_size=32, precision="fp32")
store = FeatureStore.for_encoder(encoder, root / "features")
count = [0]
def slowly(_, given):
    count[0] += len(given[0])
    time.sleep(0.05)
encoder.register_forward_pre_hook(slowly)
child = os.fork()  # from here on there are two processes, each with an empty store in its mind
fill_store(store, encoder, sorted(root.glob("*.png")), batch_size=1, say=lambda _: None)
os.write(1, f"{count[0]} {len(store)}\\n".encode())
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os._exit(0)
"""


@pytest.mark.slow
def test_two_processes_fill_one_copy(tmp_path: Path, photos: Photos) -> None:
    paths = photos(COUNT)
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    encoded, stored = zip(*map(str.split, done.stdout.splitlines()), strict=True)
    assert sorted(encoded) == ["0", str(COUNT)]
    assert stored == (str(COUNT), str(COUNT))
    [folder] = (tmp_path / "features").iterdir()
    assert (folder / "rows.key").stat().st_size == len(paths) * KEY
    assert (folder / "rows.f16").stat().st_size == len(paths) * ROW


def test_the_folder_names_the_encoder_and_says_what_it_is(
    tiny_encoder: FrozenEncoder, store: FeatureStore
) -> None:
    assert store.folder.name == f"shufflenet_v2_x0_5-{tiny_encoder.fingerprint()}"
    about = json.loads((store.folder / "about.json").read_text())
    assert about["encoder"]["backbone"] == "shufflenet_v2_x0_5"
    assert about["encoder"]["preprocess"]["crop_size"] == 32
    assert about["arithmetic"] == "fp32 on cpu"
    default = FeatureStore.for_encoder(tiny_encoder)
    assert default.folder.parent == features_folder()


def test_where_stores_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("CAPTIONER_CACHE", "~/here")
    assert features_folder() == Path("/home/somebody/here/features")
    monkeypatch.setenv("CAPTIONER_CACHE", "")
    assert features_folder() == Path("/home/somebody/.cache/captioner/features")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert features_folder() == Path("/caches/captioner/features")


def test_without_a_home_folder_the_cache_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: str) -> str:
        return "~"

    for name in ("CAPTIONER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", unknown)  # a user without an entry in /etc/passwd
    with pytest.raises(ConfigError, match="no home folder is known; set CAPTIONER_CACHE"):
        features_folder()
