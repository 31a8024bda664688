"""Features that another program made: read from each format, or refused in one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from captioner.data.dataset import Example
from captioner.data.feature_file import FeatureFile
from captioner.encoder.given_features import GivenFeatures
from captioner.errors import DataError, ModelError

h5py = pytest.importorskip("h5py")

IDS = ["12", "7", "a dog.jpg"]


def rows(*shape: int) -> dict[str, np.ndarray]:
    draws = np.random.RandomState(0)
    return {key: draws.randn(*shape).astype(np.float32) for key in IDS}


def write(path: Path, form: str, features: dict[str, np.ndarray]) -> Path:
    """Write features in one of the forms that are read."""
    table, ids = np.stack([*features.values()]), [*features]
    beside = path / "f.ids.txt"
    match form:
        case "npy":
            np.save(path / "f.npy", table)
            beside.write_text("\n".join(ids) + "\n", encoding="utf-8")
        case "npz":
            np.savez(path / "f.npz", **features)
        case "compressed npz":
            np.savez_compressed(path / "f.npz", **features)
        case "npz table":
            np.savez(path / "f.npz", ids=np.array(ids), features=table)
        case "h5":
            with h5py.File(path / "f.h5", "w") as file:
                for key, values in features.items():
                    file[key] = values
        case "h5 table":
            with h5py.File(path / "f.h5", "w") as file:
                file["ids"], file["features"] = ids, table
        case "safetensors":
            save_file({k: torch.from_numpy(v) for k, v in features.items()}, path / "f.safetensors")
        case "safetensors bf16":
            found = {k: torch.from_numpy(v).bfloat16() for k, v in features.items()}
            save_file(found, path / "f.safetensors")
        case "safetensors table":
            save_file({"features": torch.from_numpy(table)}, path / "f.safetensors")
            beside.write_text("\n".join(ids), encoding="utf-8")
    return next(each for each in path.iterdir() if not each.name.endswith(".txt"))


FORMS = (
    *("npy", "npz", "compressed npz", "npz table", "h5", "h5 table"),
    *("safetensors", "safetensors bf16", "safetensors table"),
)


@pytest.mark.parametrize("shape", [(5,), (4, 3)])
@pytest.mark.parametrize("form", FORMS)
def test_each_format_gives_back_what_was_written(
    tmp_path: Path, form: str, shape: tuple[int, ...]
) -> None:
    features = rows(*shape)
    file = FeatureFile(write(tmp_path, form, features))
    assert sorted(file.index) == sorted(IDS)
    assert file.shape == shape
    near = {"atol": 0.02} if "bf16" in form else {"atol": 0}
    for key, values in features.items():
        assert np.allclose(file.read(key), values, **near)


def test_a_large_npy_stays_on_disk(tmp_path: Path) -> None:
    write(tmp_path, "npy", {k: v.astype(np.float16) for k, v in rows(5).items()})
    mapped = FeatureFile(tmp_path / "f.npy").mapped()
    assert isinstance(mapped, np.memmap)
    assert np.allclose(mapped, np.stack([*rows(5).values()]), atol=0.01)
    write(tmp_path, "npy", rows(5))
    assert FeatureFile(tmp_path / "f.npy").mapped() is None  # float32
    write(tmp_path, "npz", rows(5))
    assert FeatureFile(tmp_path / "f.npz").mapped() is None


def test_a_row_of_one_place_is_a_vector_and_whole_numbers_are_ids(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", ids=np.array([3, 1]), features=np.ones((2, 1, 6), np.uint8))
    file = FeatureFile(tmp_path / "f.npz")
    assert [*file.index] == ["3", "1"]
    assert file.shape == (6,)
    assert file.read("1").tolist() == [1] * 6


def example(image_id: str, image: str) -> Example:
    return Example(Path(image), ("a dog",), "train", image_id)


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        (("1", "2", "9"), ["1", "2"]),
        (("x.jpg", "y.png", "9"), ["x.jpg", "y.png"]),
        (("x", "y"), ["x", "y"]),
        (("8", "9"), []),
    ],
)
def test_images_are_found_by_id_or_by_file_name(
    tmp_path: Path, keys: tuple[str, ...], found: list[str]
) -> None:
    np.savez(tmp_path / "f.npz", **{key: np.ones(3) for key in keys})
    examples = [example("1", "in/x.jpg"), example("2", "in/y.png")]
    assert [*FeatureFile(tmp_path / "f.npz").keys_of(examples).values()] == found


def test_two_images_never_share_a_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", x=np.ones(3))
    examples = [example("1", "one/x.jpg"), example("2", "two/x.jpg")]
    assert FeatureFile(tmp_path / "f.npz").keys_of(examples) == {}


def broken(path: Path, what: str) -> Path:  # noqa: PLR0912
    table = np.ones((3, 4), np.float32)
    match what:
        case "no ids":
            np.save(path / "f.npy", table)
        case "too few ids":
            np.save(path / "f.npy", table)
            (path / "f.ids.txt").write_text("a\nb\n")
        case "same ids":
            np.save(path / "f.npy", table)
            (path / "f.ids.txt").write_text("a\nb\na\n")
        case "objects":
            np.save(path / "f.npy", np.array([{}], dtype=object), allow_pickle=True)
            (path / "f.ids.txt").write_text("a\n")
        case "no numbers":
            np.savez(path / "f.npz", a=np.array(["x"]))
        case "a cube":
            np.savez(path / "f.npz", a=np.ones((2, 3, 4)))
        case "nothing":
            np.savez(path / "f.npz")
        case "cut off":
            np.savez(path / "f.npz", a=table)
            (path / "f.npz").write_bytes((path / "f.npz").read_bytes()[:200])
        case "cut off h5":
            (path / "f.h5").write_bytes(b"\x89HDF\r\n\x1a\n123")
        case "a group":
            with h5py.File(path / "f.h5", "w") as file:
                file["train/1"] = table
        case "cut off safetensors":
            (path / "f.safetensors").write_bytes(b"\x09")
        case "another ending":
            (path / "f.csv").write_text("a,1\n")
        case "missing":
            return path / "g.npz"
    return next(found for found in path.iterdir() if not found.name.endswith(".txt"))


BROKEN = {
    "no ids": r"needs f.ids.txt beside it, with one image id a line",
    "too few ids": r"2 ids for 3 images",
    "same ids": r"id 'a' stands there twice",
    "objects": r"allow_pickle|[Oo]bject",
    "no numbers": r"<U1 is no type of numbers",
    "a cube": r"shape \(2, 3, 4\); give one vector \(F\) or a grid \(P x C\) an image",
    "nothing": r"no features",
    "cut off": r"cannot be used as features",
    "cut off h5": r"cannot be used as features",
    "a group": r"train is a group",
    "cut off safetensors": r"cannot be used as features",
    "another ending": r"those end with .npy, .npz, .h5, .hdf5, .safetensors",
    "missing": r"No such file",
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    path = broken(tmp_path, what)
    with pytest.raises(DataError, match=BROKEN[what]) as error:
        FeatureFile(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_an_image_of_another_shape_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", a=np.ones((3, 4)), b=np.ones((2, 4)))
    file = FeatureFile(tmp_path / "f.npz")
    assert file.read("a").shape == (3, 4)
    with pytest.raises(DataError, match=r"'b' has the shape \(2, 4\), others \(3, 4\)"):
        file.read("b")


def test_without_h5py_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "h5", rows(3))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"f.h5: needs h5py: pip install 'captioner\[data\]'"):
        FeatureFile(path)


def test_the_vector_of_a_grid_is_the_mean_of_its_places() -> None:
    grid = np.arange(12, dtype=np.float32).reshape(4, 3)
    vector = GivenFeatures.of_shape((4, 3), attends=False)
    assert vector.sizes == {"feature_size": 3, "places": 0, "channels": 0}
    assert vector.row(grid).tolist() == [4.5, 5.5, 6.5]
    attending = GivenFeatures.of_shape((4, 3), attends=True)
    assert attending.sizes == {"feature_size": 15, "places": 4, "channels": 3}
    assert attending.vector_size == 3
    assert attending.row(grid).tolist() == [4.5, 5.5, 6.5, *range(12)]
    assert attending.fingerprint() != vector.fingerprint()
    with pytest.raises(ModelError, match=r"spatial needs places, and f.npz holds one vector"):
        GivenFeatures.of_shape((3,), attends=True, source="f.npz")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones(4), "4 numbers, the model wants 3 numbers"),
        (np.ones((2, 4)), "2 x 4 numbers, the model wants 3 numbers"),
        (np.array([1, np.nan, 1]), "not finite"),
        (np.array([1, 1e6, 1]), "above 65,504: divide"),
    ],
)
def test_features_that_do_not_fit_are_refused(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GivenFeatures(3).row(values)
    with pytest.raises(ValueError, match="the model wants 2 places of 3 numbers"):
        GivenFeatures(9, 2, 3).row(np.ones((3, 2)))
