"""Weights come from an enum, a file or nowhere; nothing in a file ever runs, and all must fit."""

from __future__ import annotations

import os
import pickle
import re
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from http.client import IncompleteRead
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torchvision import models

from captioner.encoder.backbones import build_backbone, remove_head
from captioner.encoder.preprocess import Preprocess
from captioner.encoder.weights import (
    EncoderSpec,
    fetch_weights,
    load_strictly,
    read_state_dict,
    state_of,
)
from captioner.errors import ModelError

TINY = "squeezenet1_1"
State = dict[str, Tensor]
MakeState = Callable[..., State]


def fetch(weights: str, backbone: str = TINY, **builder_args: Any) -> tuple[EncoderSpec, State]:
    return fetch_weights(backbone, weights, builder_args)


def assert_same(given: State, wanted: State) -> None:
    assert given.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(given[name], tensor, rtol=0, atol=0)


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


class Bomb:
    """Leaves a file behind if anybody unpickles it."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("legacy", [False, True])
def test_pth_and_safetensors_round_trip(
    tmp_path: Path, make_state: MakeState, legacy: bool
) -> None:
    state = make_state(TINY)
    # Torchvision's oldest files are of the legacy kind.
    torch.save(OrderedDict(state), tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    save_file(state, tmp_path / "w.safetensors")
    assert_same(read_state_dict(tmp_path / "w.pth"), state)
    assert_same(read_state_dict(tmp_path / "w.safetensors"), state)


def test_half_precision_becomes_single_and_integers_stay(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2).half(), "n": torch.tensor(3)}, tmp_path / "w.pth")
    state = read_state_dict(tmp_path / "w.pth")
    assert (state["a"].dtype, state["n"].dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_objects_are_refused_and_nothing_runs(tmp_path: Path, legacy: bool) -> None:
    mark, path = tmp_path / "ran", tmp_path / "w.pth"
    torch.save({"a": Bomb(mark)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ModelError, match="Python objects are never loaded"):
        read_state_dict(path)
    path.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ModelError):
        read_state_dict(path)
    assert not mark.exists()


@pytest.mark.parametrize("content", [{"a": 1}, [torch.ones(1)], {"state_dict": {}}, "text"])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="must map names to tensors"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda s: {"state_dict": s, "epoch": 3, "arch": "squeezenet1_1"}, "weights of state_dict"),
        (lambda s: {"model": s, "args": Namespace(lr=0.1)}, "weights of model"),
        (lambda s: {"model": {"state_dict": s}, "optimizer": {}}, "weights of model.state_dict"),
        (lambda s: prefixed(s, "module."), "named module.*"),
        (lambda s: {"state_dict": prefixed(s, "module.")}, "named module.*"),
        (lambda s: prefixed(s, "model.encoder._orig_mod."), "named model.encoder._orig_mod.*"),
        (lambda s: prefixed(s, "net.") | {"loss.weight": torch.ones(3)}, "1 others are not used"),
    ],
)
def test_wrapped_weights_are_unwrapped_and_said(
    tmp_path: Path,
    make_state: MakeState,
    capsys: pytest.CaptureFixture[str],
    wrap: Callable[[State], State],
    said: str,
) -> None:
    state = make_state(TINY)
    torch.save(wrap(state), tmp_path / "w.pth.tar")
    assert_same(fetch(str(tmp_path / "w.pth.tar"))[1], state)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_the_content_tells_safetensors_from_torch_save(
    tmp_path: Path, make_state: MakeState, name: str
) -> None:
    state = make_state(TINY)
    write = torch.save if name.endswith(".safetensors") else save_file
    write(state, tmp_path / name)
    assert_same(read_state_dict(tmp_path / name), state)


def test_a_checkpoint_without_weights_names_its_keys(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "optimizer": {"state": {}}}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"holds \['epoch', 'optimizer'\]; torch.save"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.bin"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "a web page"),
        (b"<HTML><head></head></HTML>", "a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "in XML"),
        (b'{"error": "Repository not found"}', "in JSON"),
        (b"", "empty file"),
    ],
)
def test_a_file_that_is_mistaken_for_weights_is_named(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=said):
        read_state_dict(tmp_path / name)


def test_archives_of_something_else_and_cut_files_are_named(
    tmp_path: Path, make_state: MakeState
) -> None:
    np.savez(tmp_path / "w.npz", a=np.zeros(3))
    torch.save(make_state(TINY), tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(whole[:5000])
    for name, said in (("w.npz", "not a state dict of PyTorch; "), ("w.pth", "damaged: ")):
        with pytest.raises(ModelError, match=f"{name}: {said}"):
            read_state_dict(tmp_path / name)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 99, b"PK\x03\x04 not a zip"])
def test_no_weights_at_all_is_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError) as error:
        read_state_dict(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(error.value)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(["w.pth", "old.pth", "w.safetensors"]))
def test_no_damage_raises_anything_but_a_model_error(
    tmp_path: Path, data: st.DataObject, name: str
) -> None:
    path = tmp_path / name
    tensors = {"a.weight": torch.ones(2, 3), "b": torch.tensor(1)}
    if path.suffix == ".pth":
        torch.save(tensors, path, _use_new_zipfile_serialization=name == "w.pth")
    else:
        save_file(tensors, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        read_state_dict(path)
    except ModelError as error:
        assert "\n" not in str(error)


def test_none_is_seeded_and_said_loudly(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.random.get_rng_state()
    spec, state = fetch("None")
    assert torch.equal(torch.random.get_rng_state(), before)
    output = capsys.readouterr()
    assert output.out == ""
    assert "warning: encoder.weights is none" in output.err
    assert TINY in output.err
    torch.manual_seed(7)
    assert_same(state, fetch("none")[1])
    assert spec.weights == "none"


def test_by_path(tmp_path: Path, make_state: MakeState, monkeypatch: pytest.MonkeyPatch) -> None:
    state = make_state(TINY)
    torch.save(state, tmp_path / "mine.pth")
    monkeypatch.setenv("HOME", str(tmp_path))
    for weights in (str(tmp_path / "mine.pth"), "~/mine.pth"):
        spec, found = fetch(weights, num_classes=1000)
        assert_same(found, state)
        assert spec == EncoderSpec(TINY, {"num_classes": 1000}, Preprocess(), "mine.pth")


@pytest.mark.parametrize("weights", ["IMAGENET1K_V9", "missing.pth", "~nobody_here/w.pth", ""])
def test_neither_file_nor_name_lists_the_names(weights: str) -> None:
    with pytest.raises(ModelError) as error:
        fetch(weights, "resnet50")
    assert str(error.value) == (
        f"encoder.weights: {weights} is neither a file nor weights of resnet50 "
        f"(known: IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT, none)"
    )


@pytest.mark.parametrize(
    "fault",
    [
        URLError("no route to host"),
        OSError("disk full"),
        IncompleteRead(b"half"),
        RuntimeError('invalid hash value\n(expected "ab")'),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_a_failed_download_names_two_ways_out(
    fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> State:
        raise fault

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(ModelError) as error:
        fetch("DEFAULT")
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("encoder.weights: SqueezeNet1_1_Weights.IMAGENET1K_V1 could not")
    assert f"put squeezenet1_1-b8a52dc0.pth into {tmp_path}/hub/checkpoints" in message
    assert "or set encoder.weights to the path of a state dict" in message


def no_network(*_: Any, **__: Any) -> None:
    raise AssertionError("asked the network")


def test_a_file_put_where_that_message_says_is_used(
    tmp_path: Path, make_state: MakeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    state = make_state(TINY)
    torch.save(state, folder / "squeezenet1_1-b8a52dc0.pth")
    spec, found = fetch("DEFAULT")
    assert_same(found, state)
    assert spec.weights == "SqueezeNet1_1_Weights.IMAGENET1K_V1"
    assert_same(fetch("IMAGENET1K_V1")[1], state)


def test_a_pickle_in_that_folder_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"a": Bomb(tmp_path / "ran")}, folder / "squeezenet1_1-b8a52dc0.pth")
    with pytest.raises(ModelError, match="could not be downloaded"):
        fetch("DEFAULT")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("backbone", ["googlenet", "inception_v3", "resnet50"])
def test_enum_weights_bring_their_transform_and_input(
    backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: {})
    found, _ = fetch("DEFAULT", backbone)
    weights = models.get_model_weights(backbone).DEFAULT
    assert found.preprocess == Preprocess.of_weights(weights.transforms())
    assert found.builder_args == ({} if backbone == "resnet50" else {"transform_input": True})
    asked, _ = fetch("DEFAULT", backbone, transform_input=False)
    assert asked.builder_args == {"transform_input": False}


def test_old_densenet_names_become_todays() -> None:
    old = {
        "features.denseblock1.denselayer2.norm.1.weight": torch.ones(1),
        "features.denseblock1.denselayer12.conv.2.weight": torch.ones(1),
        "features.norm5.weight": torch.ones(1),
        "features.transition1.conv.weight": torch.ones(1),
    }
    assert list(state_of(old)) == [
        "features.denseblock1.denselayer2.norm1.weight",
        "features.denseblock1.denselayer12.conv2.weight",
        "features.norm5.weight",
        "features.transition1.conv.weight",
    ]


def fit(state: State, backbone: str = "shufflenet_v2_x0_5") -> torch.nn.Module:
    network = build_backbone(backbone, {}, device="meta")
    remove_head(network)
    load_strictly(network, state, where="mine.pth")
    return network


@pytest.fixture(scope="module")
def shuffle_state(make_state: MakeState) -> State:
    return make_state("shufflenet_v2_x0_5")


def test_classifier_keys_may_be_there_or_not(shuffle_state: State) -> None:
    bare = {name: tensor for name, tensor in shuffle_state.items() if not name.startswith("fc.")}
    assert len(bare) == len(shuffle_state) - 2
    for state in (shuffle_state, bare):
        assert_same(dict(fit(state).state_dict()), bare)


def test_counters_of_training_batches_may_be_missing(shuffle_state: State) -> None:
    bare = {name: t for name, t in shuffle_state.items() if "num_batches_tracked" not in name}
    assert len(bare) < len(shuffle_state)
    fit(bare)


def test_all_that_does_not_fit_is_named_in_one_error(shuffle_state: State) -> None:
    state = dict(shuffle_state)
    del state["conv1.0.weight"], state["conv5.1.running_var"]
    state["conv1.1.bias"] = torch.ones(3)
    state["fcx.weight"] = state["head.weight"] = torch.ones(1)
    with pytest.raises(ModelError) as error:
        fit(state)
    assert str(error.value) == (
        "encoder.weights: mine.pth does not fit this backbone (missing: conv1.0.weight, "
        "conv5.1.running_var; unexpected: fcx.weight, head.weight; shape: conv1.1.bias is (3,), "
        "not (24,)); check encoder.backbone and encoder.builder_args"
    )


def test_long_lists_are_cut_short(shuffle_state: State) -> None:
    with pytest.raises(ModelError, match=re.escape(" and ") + r"\d+ more; unexpected: ") as error:
        fit(shuffle_state, "resnet18")
    assert len(str(error.value)) < 1000


def test_the_hidden_layers_of_a_classifier_are_not_optional(make_state: MakeState) -> None:
    state = make_state("mobilenet_v3_small")
    for name in list(state):
        if name.startswith("classifier."):
            del state[name]
    with pytest.raises(ModelError, match=r"missing: classifier\.0\.bias, classifier\.0\.weight"):
        fit(state, "mobilenet_v3_small")
