"""A small model directory: numbers in fp16, neighbours in 8 bits, and what a file must agree on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from captioner.captioner import Captioner
from captioner.config import DecodingConfig
from captioner.decoder import packing
from captioner.decoder.neighbours import KINDS, Neighbours, count_ngrams
from captioner.decoder.packing import pack, unpack
from captioner.errors import ConfigError, ModelError

import toys

IMAGES, WIDTH = 30, 7


def neighbours(size: int, seed: int = 0) -> Neighbours:
    draws = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 15, (3 * IMAGES, WIDTH), generator=draws)
    lengths = torch.randint(1, WIDTH + 1, (3 * IMAGES,), generator=draws)
    states = functional.normalize(torch.randn(IMAGES, size, generator=draws))
    owners = torch.arange(IMAGES).repeat_interleave(3)
    return Neighbours(states, **count_ngrams(ids, lengths, owners))


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    made = toys.captioner(hidden_size=32)
    made.neighbours = neighbours(made.decoder.num_states * 32)
    made.decoding = DecodingConfig(neighbours=2.0, precision="fp32")
    return made


@pytest.fixture
def folder(captioner: Captioner, tmp_path: Path) -> Path:
    captioner.save(tmp_path / "small", storage="fp16")
    return tmp_path / "small"


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        Captioner.load(folder, "cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(folder: Path, **values: object) -> None:
    """Change config.json; None removes a field."""
    config = json.loads((folder / "config.json").read_text()) | values
    config = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("eyes", [toys.encoder, toys.pair])
def test_numbers_are_rounded_once_and_computed_with_in_fp32(eyes, tmp_path):
    made = toys.captioner(eyes())
    made.save(tmp_path / "large")
    made.save(tmp_path / "small", storage="fp16")
    large, small = (load_file(tmp_path / name / "model.safetensors") for name in ("large", "small"))
    assert large.keys() == small.keys()
    assert {t.dtype for t in small.values() if t.is_floating_point()} == {torch.float16}
    assert all(torch.equal(large[name].to(small[name].dtype), small[name]) for name in large)
    loaded = Captioner.load(tmp_path / "small", "cpu")
    for cnn in loaded.encoder.cnns:
        assert {t.dtype for t in cnn.state.values()} <= {torch.float32, torch.int64}
    assert {t.dtype for t in loaded.decoder.state_dict().values()} == {torch.float32}
    loaded.save(tmp_path / "again", storage="fp16")
    for file in (tmp_path / "again").iterdir():
        assert file.read_bytes() == (tmp_path / "small" / file.name).read_bytes()


def test_half_the_space_for_nearly_the_same_captions(captioner, folder, tmp_path):
    captioner.save(tmp_path / "large")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("large", "small")]
    assert sizes[1] < 0.55 * sizes[0]
    large, small = (Captioner.load(tmp_path / name, "cpu") for name in ("large", "small"))
    features = torch.randn(20, captioner.encoder.feature_size)
    found = [each.search(features, n_best=3) for each in (large, small)]
    same = [a[0].text == b[0].text for a, b in zip(*found, strict=True)]
    assert sum(same) >= 18
    for ours, theirs, alike in zip(*found, same, strict=True):
        if alike:
            assert ours[0].score == pytest.approx(theirs[0].score, abs=0.05)


def test_an_earlier_captioner_says_in_one_line_that_it_cannot_read_it(folder, tmp_path, captioner):
    """It knows version 1 alone, checks the version first, and ignores new fields of version 1."""
    assert json.loads((folder / "config.json").read_text())["format_version"] == 2
    captioner.save(tmp_path / "large")
    assert json.loads((tmp_path / "large" / "config.json").read_text())["format_version"] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("part", ["encoder.", "decoder."])
def test_numbers_of_another_type_than_stated_are_refused(folder, part, dtype):
    whole = load_file(folder / "model.safetensors")
    changed = {k: t.to(dtype) if k.startswith(part) else t for k, t in whole.items()}
    save_file(changed, folder / "model.safetensors")
    message = refused(folder)
    assert "config.json, which states fp16" in message
    assert str(dtype) in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format_version": 1}, "format version 1 with storage fp16; restore"),
        ({"storage": None}, "format version 2 with storage not stated"),
        ({"storage": "fp32"}, "format version 2 with storage fp32"),
        ({"format_version": 1, "storage": "fp32"}, "does not fit config.json, which states fp32"),
        ({"format_version": 6}, "format version 6 with storage fp16; restore"),
        ({"format_version": 9}, "format version 9, this captioner reads 1 to 8"),
        ({"format_version": True}, "format version True, this captioner reads 1 to 8"),
        ({"encoder": []}, "encoder: either CNNs or features"),
        ({"storage": "int8"}, "storage: input should be 'fp32' or 'fp16'"),
    ],
)
def test_what_config_json_states_must_agree(folder, values, message):
    change(folder, **values)
    assert message in refused(folder)


@pytest.mark.parametrize("storage", ["fp8", "FP16", "", "auto"])
def test_an_unknown_storage_is_refused(captioner, storage, tmp_path):
    with pytest.raises(ConfigError, match="storage: must be 'fp32' or 'fp16'"):
        captioner.save(tmp_path / "x", storage=storage)
    assert not (tmp_path / "x").exists()


def test_a_weight_that_fp16_cannot_hold_is_named_and_nothing_is_written(tmp_path):
    made = toys.captioner()
    with torch.no_grad():
        made.decoder.output.bias[5] = -70_000.0
    with pytest.raises(ModelError, match=r"65,504, and decoder\.output\.bias holds 70,000; save"):
        made.save(tmp_path / "x", storage="fp16")
    assert not (tmp_path / "x").exists()
    made.save(tmp_path / "x")


@pytest.mark.parametrize("storage", ["fp16", "fp32"])
def test_neighbours_of_the_other_storage_are_refused(captioner, storage, tmp_path):
    captioner.save(tmp_path / "one", storage)
    captioner.save(tmp_path / "other", "fp32" if storage == "fp16" else "fp16")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "other"))
    other = {name: tensor for name, tensor in other.items() if name.startswith("neighbours.")}
    save_file(one | other, tmp_path / "one" / "model.safetensors")
    assert "neighbours.states must be a 2-dimensional torch." in refused(tmp_path / "one")


def packed(seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    tensors = neighbours(6, seed).tensors()
    return tensors, pack(tensors)


@given(seed=st.integers(0, 1000), page=st.sampled_from([1, 3, 16, 2**16]))
def test_packing_keeps_every_place_and_rounds_the_numbers(seed, page):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "PAGE", page)
        tensors, small = packed(seed)
        back = unpack(small)
    assert {name: (t.dtype, t.dim()) for name, t in back.items()} == KINDS
    for name in ("keys", "starts", "ngrams"):
        assert torch.equal(back[name], tensors[name])
    torch.testing.assert_close(back["idf"], tensors["idf"], rtol=1e-3, atol=1e-3)
    for name, steps in (("states", 127), ("weights", 255)):
        error = (back[name].float() - tensors[name].float()).abs().max()
        assert error <= 0.75 / steps * tensors[name].float().max()
    Neighbours.read(back, [6])


def test_entries_in_any_order_are_packed_in_order():
    tensors, small = packed(0)
    start, end = tensors["starts"][4:6].tolist()
    for name in ("ngrams", "weights"):
        tensors[name] = tensors[name].clone()
        tensors[name][start:end] = tensors[name][start:end].flip(0)
    again = pack(tensors)
    assert all(torch.equal(again[name], small[name]) for name in small)


def test_images_without_entries_are_packed():
    ids, lengths = torch.tensor([[4], [5]]), torch.tensor([1, 1])
    tensors = Neighbours(torch.eye(2), **count_ngrams(ids, lengths, torch.arange(2))).tensors()
    back = unpack(pack(tensors))
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("states", lambda t: t[:, 1:], "do not fit"),
        ("states", lambda t: t[1:], "do not fit"),
        ("states", lambda t: t.half(), "neighbours.states must be a 2-dimensional torch.int8"),
        ("states", None, "neighbours.states is missing"),
        ("state_scales", lambda t: t[1:], "do not fit"),
        ("state_scales", lambda t: t.float(), "must be a 1-dimensional torch.float16"),
        ("state_scales", lambda t: t * torch.inf, "holds a number that is not finite"),
        ("keys", lambda t: t.flip(0), "do not fit"),
        ("keys", lambda t: t[:0], "do not fit"),
        ("idf", lambda t: t[1:], "do not fit"),
        ("idf", lambda t: t * 100, "do not fit"),
        ("pages", lambda t: t[1:], "do not fit"),
        ("pages", lambda t: -t, "do not fit"),
        ("pages", lambda t: t + 1, "do not fit"),
        ("pages", lambda t: torch.cat((t, t * 0), 1), "do not fit"),
        ("pages", lambda t: torch.cat((-t[:1], t[1:2] + 2 * t[:1], t[2:])), "do not fit"),
        ("pages", lambda t: t * 0 + 2**31 - 1, "do not fit"),
        ("ngrams", lambda t: t[1:], "do not fit"),
        ("ngrams", lambda t: (t.int() * 0 + 65_535).to(torch.uint16), "do not fit"),
        ("weights", lambda t: t[1:], "do not fit"),
        ("weight_scales", lambda t: t[1:], "do not fit"),
        ("weight_scales", lambda t: t * 0 + 1, "do not fit"),
        ("weight_scales", lambda t: t * 0 - 1, "do not fit"),
    ],
)
def test_packed_neighbours_of_a_stranger_are_checked(folder, name, change, reason):
    tensors = load_file(folder / "model.safetensors")
    tensor = tensors.pop(f"neighbours.{name}")
    if change:
        tensors[f"neighbours.{name}"] = change(tensor).contiguous()
    save_file(tensors, folder / "model.safetensors")
    assert reason in refused(folder)
