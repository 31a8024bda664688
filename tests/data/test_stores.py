"""Stored features are what was written, or refused; stores are looked after."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captioner.cli import main
from captioner.data import feature_store, fill
from captioner.data.feature_store import FeatureStore, features_folder
from captioner.data.fill import fill_store
from captioner.data.stores import limit, stores
from captioner.encoder.encoder import FrozenEncoder
from captioner.errors import ConfigError, DataError, ModelError
from captioner.training.run import train

import toys

Photos = Callable[..., list[Path]]
COUNT, WIDTH = 7, 5
FILES = ("rows.f16", "rows.key", "rows.sum")


def key(number: int) -> bytes:
    return bytes([number + 1]) * 16


def small(folder: Path) -> tuple[FeatureStore, np.ndarray]:
    rows = np.random.default_rng(0).normal(size=(COUNT, WIDTH)).astype(np.float16)
    store = FeatureStore(folder, WIDTH)
    store.append([key(i) for i in range(COUNT)], rows)
    return store, rows


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def size_of(folder: Path) -> int:
    return next(stored.size for stored in stores(folder.parent) if stored.folder == folder)


def run(*words: str) -> Result:
    done = CliRunner().invoke(main, ["features", *words])
    assert not done.exception or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.fixture
def filled(tiny_encoder: FrozenEncoder, photos: Photos) -> tuple[FeatureStore, list[Path]]:
    """A store in the usual place."""
    paths = photos(6)
    store = FeatureStore.for_encoder(tiny_encoder)
    fill_store(store, tiny_encoder, paths, say=lambda _: None)
    return store, paths


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(FILES), st.data())
def test_any_flipped_bit_is_refused_or_its_row_unknown(tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("store")
    _, rows = small(folder)
    size = (folder / name).stat().st_size
    bit = data.draw(st.integers(0, 8 * size - 1))
    flip(folder / name, bit)
    store = FeatureStore(folder, WIDTH)
    hit = bit // 8 // (size // COUNT)
    for i in range(COUNT):
        if i != hit:
            np.testing.assert_array_equal(store.rows([key(i)]), rows[[i]])
        elif key(i) in store:
            with pytest.raises(DataError, match=r"1 stored row\(s\) of features were altered"):
                store.rows([key(i)])
        else:
            assert name == "rows.key"
    assert store.drop_damaged() == 1
    assert len(FeatureStore(folder, WIDTH)) == COUNT - 1


def test_rows_that_changed_places_are_refused(tmp_path):
    store, rows = small(tmp_path)
    (tmp_path / "rows.f16").write_bytes(rows[::-1].tobytes())
    with pytest.raises(DataError, match=r"2 stored row\(s\)") as caught:
        store.rows([key(0), key(1)])
    assert str(tmp_path) in str(caught.value)
    assert "captioner features --prune" in str(caught.value)
    assert "--check" in str(caught.value)
    assert "--clear" in str(caught.value)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1.5])
def test_no_table_holds_an_altered_row(tmp_path, monkeypatch, on_disk, value):
    monkeypatch.setattr(feature_store, "fits", lambda *_: not on_disk)
    monkeypatch.setattr(feature_store, "CHUNK", 2)
    store, rows = small(tmp_path)
    rows[4, 2] = value
    (tmp_path / "rows.f16").write_bytes(rows.tobytes())
    keys = [key(i) for i in range(COUNT)]
    table, places = store.table([k for k in keys if k != key(4)])
    np.testing.assert_array_equal(table[places].numpy(), np.delete(rows, 4, axis=0))
    with pytest.raises(DataError, match="altered"):
        store.table(keys)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_not_stored(tmp_path, value):
    store, rows = small(tmp_path)
    with pytest.raises(ModelError, match="not finite"):
        store.append([key(99)], np.full((1, WIDTH), value, np.float16))
    assert len(FeatureStore(tmp_path, WIDTH)) == COUNT
    np.testing.assert_array_equal(store.rows([key(3)]), rows[[3]])


def test_nothing_trains_on_altered_features(tmp_path):
    config = toys.config(tmp_path, epochs=1)
    train(config, tmp_path / "run", device="cpu")
    (rows,) = features_folder().rglob("rows.f16")
    table = np.fromfile(rows, np.float16)
    table[100] = np.nan
    table.tofile(rows)
    with pytest.raises(DataError) as caught:
        train(config, tmp_path / "other", device="cpu")
    assert str(rows.parent) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert run("--prune").exit_code == 0
    train(config, tmp_path / "other", device="cpu", resume=True)


def test_an_empty_store_is_sound(tiny_encoder):
    FeatureStore.for_encoder(tiny_encoder)
    done = run("--check")
    assert "0 rows" in done.stdout
    assert "sound" in done.stdout
    assert run("--prune").exit_code == 0


def test_a_store_without_checksums_is_encoded_again(filled, tiny_encoder):
    store, paths = filled
    before = {name: (store.folder / name).read_bytes() for name in FILES}
    (store.folder / "rows.sum").unlink()
    again = FeatureStore.for_encoder(tiny_encoder)
    assert not len(again)
    assert "6 row(s) cut off" in run("--check").stdout
    fill_store(again, tiny_encoder, paths, say=lambda _: None)
    assert {name: (store.folder / name).read_bytes() for name in FILES} == before


def test_a_store_whose_description_is_damaged_is_listed_and_cleared(filled):
    store, _ = filled
    (store.folder / "about.json").write_text("{")
    done = run("--check")
    assert done.exit_code == 1
    assert "about.json damaged" in done.stdout
    assert run("--prune").exit_code == 0
    assert (store.folder / "rows.f16").exists()
    assert run("--clear", store.folder.name).exit_code == 0
    assert not store.folder.exists()


def test_a_file_that_is_cut_off_while_it_is_in_use_is_one_line(tmp_path):
    store, _ = small(tmp_path)
    os.truncate(tmp_path / "rows.f16", 20)
    with pytest.raises(DataError, match="truncated while in use"):
        store.rows([key(0)])


# ---------------------------------------------------------------------- the command


def test_check_lists_stores_and_names_the_damaged(filled):
    store, _ = filled
    done = run("--check")
    assert done.exit_code == 0
    assert store.folder.name in done.stdout
    for words in ("shufflenet_v2_x0_5, fp32", "6 rows", "sound", "of at most 100 GB", "0 damaged"):
        assert words in done.stdout
    flip(store.folder / "rows.f16", 12345)
    done = run("--check")
    assert done.exit_code == 1
    assert "1 row(s) altered" in done.stdout
    assert "captioner features --prune" in done.stderr
    os.truncate(store.folder / "rows.f16", 2 * 1024 * 4 + 3)
    assert "2 row(s) cut off" in run("--check").stdout
    assert run("--prune").exit_code == 0
    assert run("--check").exit_code == 0


def test_prune_drops_what_is_damaged_and_no_more(filled, tiny_encoder):
    store, paths = filled
    keys, _ = fill_store(store, tiny_encoder, paths, say=lambda _: None)
    good = store.rows([keys[p][0] for p in paths])
    flip(store.folder / "rows.f16", 8 * 2048 * 3)
    flip(store.folder / "rows.sum", 8 * 8 * 1)
    done = run("--prune")
    assert done.exit_code == 0
    assert "deleted 2 damaged row(s)" in done.stdout
    assert run("--check").exit_code == 0
    again = FeatureStore.for_encoder(tiny_encoder)
    assert len(again) == 4
    said: list[str] = []
    fill_store(again, tiny_encoder, paths, say=said.append)
    assert "2 images to encode" in said[0]
    np.testing.assert_allclose(again.rows([keys[p][0] for p in paths]), good, atol=1e-2)
    assert run("--prune").stdout == "0.0 MB freed\n"


def test_pruning_that_is_cut_off_leaves_nothing_wrong(tmp_path, monkeypatch):
    store, rows = small(tmp_path)
    flip(tmp_path / "rows.f16", 3)
    flip(tmp_path / "rows.f16", 3 + 16 * WIDTH)
    damaged = store.damaged()
    assert damaged == [key(0), key(1)]

    def dies(_):
        yield damaged[0]
        raise KeyboardInterrupt

    monkeypatch.setattr(FeatureStore, "damaged", dies)
    with pytest.raises(KeyboardInterrupt):
        store.drop_damaged()
    monkeypatch.undo()
    again = FeatureStore(tmp_path, WIDTH)
    assert len(again) == COUNT - 1
    assert again.damaged() == [key(1)]
    assert again.drop_damaged() == 1
    again.append([key(0), key(1)], rows[:2])
    keys = [key(i) for i in range(COUNT)]
    np.testing.assert_array_equal(FeatureStore(tmp_path, WIDTH).rows(keys), rows)


def clutter(store: FeatureStore) -> dict[Path, bytes]:
    """Put things of somebody else's beside the stores and into them."""
    parent = store.folder.parent
    theirs = {
        store.folder / "notes.txt": b"mine",
        parent / "mine" / "rows.f16": b"my rows",
        parent / "mine" / "about.json": b'{"encoder": 1}',
        parent / "loose.key": b"loose",
    }
    for path, content in theirs.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return theirs


@pytest.mark.parametrize("name", [None, "folder", "backbone"])
def test_clear_deletes_a_store_and_nothing_of_others(filled, name, tmp_path):
    store, _ = filled
    other, _ = small(store.folder.parent / "resnet50-0123")
    (other.folder / "about.json").write_text(
        json.dumps({"encoder": {"backbone": "resnet50"}, "arithmetic": "x", "feature_size": WIDTH})
    )
    theirs = clutter(store)
    outside = tmp_path / "outside"
    small(outside)
    (store.folder.parent / "link").symlink_to(outside)
    words = {None: (), "folder": (store.folder.name,), "backbone": ("shufflenet_v2_x0_5",)}[name]
    done = run("--clear", *words)
    assert done.exit_code == 0, done.stderr
    assert f"deleted: {store.folder.name}  shufflenet_v2_x0_5, fp32" in done.stdout
    assert "6 rows" in done.stdout
    assert [p.name for p in store.folder.iterdir()] == ["notes.txt"]
    assert other.folder.exists() == (name is not None)
    assert {path: path.read_bytes() for path in theirs} == theirs
    assert len(FeatureStore(outside, WIDTH)) == COUNT


def test_clear_of_a_name_that_is_not_there_lists_what_is(filled):
    done = run("--clear", "resnet18")
    assert done.exit_code == 2
    assert filled[0].folder.name in done.stderr


def test_what_is_in_use_is_left_alone(filled):
    store, _ = filled
    before = {p: p.read_bytes() for p in store.folder.iterdir() if p.suffix != ".lock"}
    flip(store.folder / "rows.f16", 9)
    before[store.folder / "rows.f16"] = (store.folder / "rows.f16").read_bytes()
    with FileLock(store.folder / "fill.lock"):
        for words in (("--clear",), ("--prune",)):
            done = run(*words)
            assert "in use, kept" in done.output
    assert {p: p.read_bytes() for p in before} == before


def test_the_limit_is_kept_by_dropping_what_was_used_longest_ago(filled, monkeypatch):
    parent = filled[0].folder.parent
    for number in range(3):
        store, _ = small(parent / f"alexnet-{number}")
        about = {"encoder": {"backbone": "alexnet"}, "arithmetic": "x", "feature_size": WIDTH}
        (store.folder / "about.json").write_text(json.dumps(about))
        used = time.time() - 1000 * (3 - number)
        os.utime(store.folder / "about.json", (used, used))
    monkeypatch.setenv("CAPTIONER_CACHE_LIMIT", str((size_of(filled[0].folder) + 400) / 1e9))
    done = run("--prune")
    assert done.exit_code == 0
    assert [line.split()[1] for line in done.stdout.splitlines() if "deleted" in line] == [
        "alexnet-0",
        "alexnet-1",
    ]
    assert (parent / "alexnet-2").exists()
    assert filled[0].folder.exists()


def test_over_the_limit_nothing_is_encoded(filled, tiny_encoder, photos, monkeypatch):
    store, paths = filled
    taken = size_of(store.folder)
    monkeypatch.setenv("CAPTIONER_CACHE_LIMIT", str((taken + 2047) / 1e9))
    monkeypatch.setattr(fill, "_encode", None)
    fill_store(store, tiny_encoder, paths, say=lambda _: None)  # all there
    with pytest.raises(DataError) as caught:
        fill_store(store, tiny_encoder, [*paths, *photos(1, start=50)], say=lambda _: None)
    for words in ("over their limit", "--check", "--clear NAME", "$CAPTIONER_CACHE_LIMIT"):
        assert words in str(caught.value)


@pytest.mark.parametrize("value", ["many", "0", "-1", "nan", "inf", "1e400", "50 GB", "1e10"])
def test_a_limit_is_a_number_of_gigabytes(monkeypatch, value):
    monkeypatch.setenv("CAPTIONER_CACHE_LIMIT", value)
    with pytest.raises(ConfigError, match=r"\$CAPTIONER_CACHE_LIMIT: must be a number of GB"):
        limit()


def test_the_limit_is_100_gb_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("CAPTIONER_CACHE_LIMIT", raising=False)
    assert limit() == 100 * 10**9
    monkeypatch.setenv("CAPTIONER_CACHE_LIMIT", "0.5")
    assert limit() == 5 * 10**8


@pytest.mark.parametrize(
    "words",
    [
        ("--check", "--prune"),
        ("--clear", "--check"),
        ("scenes", "--check"),
        ("--prune", "--set", "training.seed=1"),
    ],
)
def test_each_task_is_given_alone(words):
    assert run(*words).exit_code == 2


def test_without_any_store_there_is_nothing_to_do():
    assert run("--check").exit_code == 0
    assert run("--prune").stdout == "0.0 MB freed\n"
    assert run("--clear").stdout == "0.0 MB freed\n"
