"""A model directory from a stranger is data: it runs nothing, fills no memory, and errs in a line.

Each case must also be refused at once; the time is bounded by a timer, the memory by what torch is
asked for, so that a failure does not take the machine with it.
"""

import json
import os
import pickle
import signal
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from captioner import model_config
from captioner.captioner import Captioner
from captioner.encoder import preprocess
from captioner.encoder.backbones import MAX_CALLS, build_backbone
from captioner.encoder.weights import read_state_dict
from captioner.errors import ModelError

import toys

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.nn")
SECONDS = 20  # far more than any of these takes
MANY = 2**24  # numbers in one tensor: 64 MiB
JSON_FILES = ("config.json", "vocab.json", "preprocessor_config.json")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    toys.captioner().save(folder / "good")
    return folder / "good"


@pytest.fixture
def folder(model, tmp_path):
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    toys.captioner(toys.pair()).save(folder / "good")
    return folder / "good"


@pytest.fixture
def pair(two, tmp_path):
    """A model with two CNNs side by side."""
    for file in two.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


class NothingLarge(TorchFunctionMode):
    """Fail where a large tensor is really made."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.device.type == "cpu":
            assert made.numel() <= MANY, func
        return made


@pytest.fixture(autouse=True)
def at_once():
    if not hasattr(signal, "SIGVTALRM"):
        yield
        return

    def give_up(*_):
        pytest.fail(f"computed for more than {SECONDS} seconds")

    before = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)  # waiting for a busy machine does not count
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


def refused(folder):
    with NothingLarge(), pytest.raises(ModelError) as error:
        Captioner.load(folder, "cpu")
    message = str(error.value)
    assert len(message.splitlines()) == 1, message
    assert len(message) < 1000 + len(str(folder))
    return message


def change(folder, section, **values):
    config = json.loads((folder / "config.json").read_text())
    (config[section] if section else config).update(values)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", 10**9),
        ("hidden_size", 10**30),
        ("hidden_size", 20_000),
        ("hidden_size", 0),
        ("hidden_size", -1),
        ("hidden_size", None),
        ("hidden_size", True),
        ("embed_size", 10**9),
        ("embed_size", -1),
        ("num_layers", 10**6),
        ("num_layers", 2),
        ("num_layers", 0),
        ("vocab_size", 10**9),
        ("vocab_size", 15.0),
        ("vocab_size", "15"),
        ("feature_size", 10**9),
        ("feature_size", None),
        ("dropout", 7),
        ("dropout", "x"),
        ("cell", []),
        ("cell", "os.system"),
        ("nonlinearity", "os.system"),
        ("init_activation", "relu"),
        ("feature_norm", 3),
        ("tie_weights", False),
        ("self", 1),
    ],
)
def test_decoder(folder, name, value):
    change(folder, "decoder", **{name: value})
    assert str(folder) in refused(folder)


@pytest.mark.parametrize("cell", ["rnn", "elman", "gru", "lstm"])
def test_sizes_are_compared_before_anything_is_made(tmp_path, cell):
    toys.captioner(cell=cell).save(tmp_path)
    change(tmp_path, "decoder", hidden_size=30_000)
    assert "does not fit config.json" in refused(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backbone", 5),
        ("backbone", ["squeezenet1_1"]),
        ("backbone", "os.system"),
        ("backbone", "x" * 10**5),
        ("builder_args", 5),
        ("builder_args", []),
        ("builder_args", {"weights": "DEFAULT"}),
        ("builder_args", {"num_classes": "x" * 10**5}),
        ("precision", "fp8"),
        ("precision", {}),
        ("weights", 5),
    ],
)
def test_encoder(folder, name, value):
    change(folder, "encoder", **{name: value})
    refused(folder)


@pytest.mark.parametrize(
    ("backbone", "args"),
    [
        ("mobilenet_v2", {"inverted_residual_setting": [[1, 16, 10**7, 1]]}),
        ("mobilenet_v2", {"width_mult": 1e9}),
        ("mobilenet_v2", {"width_mult": 1000.0}),
        ("mobilenet_v2", {"width_mult": float("inf")}),
        ("mobilenet_v2", {"width_mult": float("nan")}),
        ("mobilenet_v2", {"round_nearest": 0}),
        ("resnet50", {"width_per_group": 10**12}),
        ("resnet50", {"norm_layer": "os.system"}),
        ("vgg11", {"num_classes": -1}),
        ("regnet_x_400mf", {"stem_width": 10**9}),
        ("googlenet", {"blocks": ["x"]}),
        ("vit_b_16", {}),
    ],
)
def test_backbones(folder, backbone, args):
    change(folder, "encoder", backbone=backbone, builder_args=args)
    assert refused(folder).startswith("encoder.")


def test_the_deepest_of_torchvision_is_far_from_the_limit():
    class Count(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            Count.calls += 1
            return func(*args, **(kwargs or {}))

    with Count():
        build_backbone("efficientnet_v2_l", {}, device="meta")
    assert 0 < Count.calls < MAX_CALLS / 5


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("decoding", {"max_length": 10**12}),
        ("decoding", {"beam_size": 10**9}),
        ("decoding", {"beam_size": -1}),
        ("decoding", {"surprise": 1}),
        (None, {"decoder": 5}),
        (None, {"decoder": [[1, 2]]}),
        (None, {"encoder": []}),
        (None, {"encoder": {}}),
        (None, {"decoding": None}),
        (None, {"format_version": [1] * 10**5}),
    ],
)
def test_config(folder, section, values):
    change(folder, section, **values)
    assert "config.json" in refused(folder)


def change_cnn(folder, number, file="config.json", **values):
    whole = json.loads((folder / file).read_text())
    each = whole["encoder"] if file == "config.json" else whole
    each[number].update(values)
    (folder / file).write_text(json.dumps(whole))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backbone", 5),
        ("backbone", "os.system"),
        ("backbone", "resnet18"),
        ("builder_args", []),
        ("builder_args", {"weights": "DEFAULT"}),
        ("precision", "fp8"),
        ("precision", "bf16"),
        ("weights", None),
    ],
)
def test_one_of_two_cnns(pair, number, name, value):
    change_cnn(pair, number, **{name: value})
    message = refused(pair)
    if name not in ("backbone", "builder_args"):
        assert str(pair) in message
        assert f"encoder.{number}.{name}" in message or value == "bf16"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"resize_size": 40}, "resize_size 32, 40"),
        ({"crop_size": 30}, "crop_size 32, 30"),
        ({"interpolation": "nearest"}, "interpolation bilinear, nearest"),
        ({"interpolation": None}, "preprocessor_config.json"),
        ({"std": [1, 0, 1]}, "1.std.1: input should be greater than or equal to 0.000001, given 0"),
        ({"mean": "abc"}, "preprocessor_config.json"),
        ({"crop_size": 33}, "crop_size must not exceed"),
    ],
)
def test_preprocessing_of_one_of_two(pair, values, said):
    change_cnn(pair, 1, "preprocessor_config.json", **values)
    message = refused(pair)
    assert str(pair) in message
    assert said in message


@pytest.mark.parametrize("count", [0, 1, 3, 1000])
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_as_many_cnns_as_preprocessings(pair, file, count):
    whole = json.loads((pair / file).read_text())
    each = whole["encoder"] if file == "config.json" else whole
    each[:] = (each * count)[:count]
    (pair / file).write_text(json.dumps(whole))
    none = file == "config.json" and not count
    expected = "either CNNs or features" if none else "preprocessor_config.json"
    assert expected in refused(pair)


@pytest.mark.parametrize("count", [1, 3, 3000])
def test_as_many_cnns_as_weights(pair, count):
    config = json.loads((pair / "config.json").read_text())
    config["encoder"] = (config["encoder"] * count)[:count]
    (pair / "config.json").write_text(json.dumps(config))
    preprocess = json.loads((pair / "preprocessor_config.json").read_text())
    (pair / "preprocessor_config.json").write_text(json.dumps([preprocess[0]] * count))
    assert ("encoder.1." in refused(pair)) == (count == 1)


@pytest.mark.parametrize("each", [[5, 5], ["ab", "cd"], [None, None], [[], []], {"0": {}, "1": {}}])
def test_what_is_no_list_of_cnns(pair, each):
    good = (pair / "config.json").read_text()
    change(pair, None, encoder=each)
    assert "config.json" in refused(pair)
    (pair / "config.json").write_text(good)
    (pair / "preprocessor_config.json").write_text(json.dumps(each))
    assert "preprocessor_config.json" in refused(pair)


@pytest.mark.parametrize("name", ["encoder.1.features.0.weight", "encoder.0.features.0.weight"])
def test_weights_of_one_of_two(pair, name):
    path = pair / "model.safetensors"
    whole = load_file(path)
    weight = whole.pop(name)
    number, rest = name[8], name[10:]
    for others in (
        {},
        {name: weight[1:].contiguous()},
        {name: weight.bool()},
        {name: weight, f"encoder.{number}.surprise": weight},
        {name: weight, f"encoder.2.{rest}": weight},
        {name: weight, "encoder.features.0.weight": weight},
        {name: weight, f"encoder.0{number}.{rest}": weight},
        {name: weight, f"encoder.{number}": weight},
        {name: weight * float("nan")},
    ):
        save_file(whole | {key: tensor.clone() for key, tensor in others.items()}, path)
        refused(pair)
    save_file(whole | {name: weight}, path)
    assert len(Captioner.load(pair, "cpu").encoder.cnns) == 2


def test_lists_and_single_cnns_do_not_mix(folder, model):
    config = json.loads((folder / "config.json").read_text())
    change(folder, None, encoder=[config["encoder"]])
    assert "config.json, which has no CNN for encoder." in refused(folder)
    names = {
        key.replace("encoder.", "encoder.0."): tensor
        for key, tensor in load_file(model / "model.safetensors").items()
    }
    save_file(names, folder / "model.safetensors")
    assert Captioner.load(folder, "cpu").encoder.fingerprint() == toys.encoder().fingerprint()
    change(folder, None, encoder=config["encoder"])
    refused(folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", {"encoder": [5] * 10**5}),
        ("preprocessor_config.json", [5] * 10**5),
        *(
            ("config.json", {section: {f"s{number}": 1 for number in range(10**5)}})
            for section in ("decoder", "decoding")
        ),
    ],
    ids=["encoder", "preprocessor", "decoder", "decoding"],
)
def test_of_many_mistakes_one_is_looked_at(folder, monkeypatch, file, content):
    good = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(good | content if file == "config.json" else content))
    counts = []
    mistake = model_config.first_mistake

    def counted(error, *tags):
        counts.append(error.error_count())
        return mistake(error, *tags)

    for module in (model_config, preprocess):
        monkeypatch.setattr(module, "first_mistake", counted)
    assert file in refused(folder)
    assert counts == [1]


@pytest.mark.parametrize("file", JSON_FILES)
@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[]",
        b"null",
        b'{"format_version": ' + b"1" * 10**6 + b"}",
        bytes(100),
        "{}".encode("utf-16"),
    ],
    ids=["arrays", "objects", "list", "null", "digits", "zeros", "utf-16"],
)
def test_json(folder, file, content):
    (folder / file).write_bytes(content)
    assert file in refused(folder)


@pytest.mark.parametrize("file", [*JSON_FILES, "model.safetensors"])
def test_files_without_end(folder, file):
    with (folder / file).open("r+b") as grown:
        grown.truncate(2**36)
    assert file in refused(folder)
    (folder / file).unlink()
    (folder / file).mkdir()
    assert file in refused(folder)  # config.json: no model here
    if os.name == "posix":
        (folder / file).rmdir()
        os.mkfifo(folder / file)
        assert file in refused(folder)
        (folder / file).unlink()
        for target in ("/dev/zero", file, "nowhere"):
            (folder / file).symlink_to(target)
            assert file in refused(folder)
            (folder / file).unlink()


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_links_to_files_are_as_good_as_files(folder, model):
    """Hugging Face's cache is made of them."""
    for file in model.iterdir():
        (folder / file.name).unlink()
        (folder / file.name).symlink_to(file)
    assert Captioner.load(folder, "cpu").vocabulary == toys.vocabulary()


def tensors(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype, shape, end):
    return {"decoder.x": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**62) + b"{}",
        tensors(entry("F32", [10**9, 10**3], 4 * 10**12)),
        tensors(entry("F32", [2**62, 2**62], 4), b"1234"),
        tensors(entry("F32", [0, 2**62], 0)),
        tensors(entry("F32", [2], 4), b"1234"),
        tensors(entry("Q9", [1], 4), b"1234"),
        tensors(entry("F8_E8M0", [4], 4), b"1234"),
        tensors(b"[" * 100_000),
        tensors(b'{"a":' * 100_000),
        pickle.dumps({"never": "loaded"}),
        b"",
    ],
    ids=lambda content: repr(content[:40]),
)
def test_weights(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    refused(folder)


@pytest.mark.parametrize("part", ["encoder.", "decoder."])
def test_numbers_of_another_kind(folder, part):
    whole = load_file(folder / "model.safetensors")
    for dtype in (torch.int8, torch.bool, torch.complex64):
        changed = {k: t.to(dtype) if k.startswith(part) else t for k, t in whole.items()}
        save_file(changed, folder / "model.safetensors")
        assert str(dtype) in refused(folder)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        changed = {k: t.to(dtype) if k.startswith(part) else t for k, t in whole.items()}
        save_file(changed, folder / "model.safetensors")
        assert "config.json, which states fp32" in refused(folder)
        # Directories of captioner 0.1 state nothing.
        config = json.loads((folder / "config.json").read_text())
        stated = config.pop("storage")
        (folder / "config.json").write_text(json.dumps(config))
        loaded = Captioner.load(folder, "cpu")
        assert {t.dtype for t in loaded.encoder.state.values()} == {torch.float32}
        assert {t.dtype for t in loaded.decoder.state_dict().values()} == {torch.float32}
        assert loaded.encoder.fingerprint()
        (folder / "config.json").write_text(json.dumps(config | {"storage": stated}))


@pytest.mark.parametrize("name", ["decoder.embedding.weight", "encoder.features.0.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number(folder, name, value):
    whole = load_file(folder / "model.safetensors")
    whole[name].view(-1)[3] = value
    save_file(whole, folder / "model.safetensors")
    assert f"{name} holds a number that is not finite" in refused(folder)


def test_one_number_that_claims_to_be_many(tmp_path):
    torch.save({"x": torch.zeros(1, dtype=torch.float16).expand(10**6, 10**6)}, tmp_path / "x.pth")
    with NothingLarge(), pytest.raises(ModelError, match="claim more numbers than the file holds"):
        read_state_dict(tmp_path / "x.pth")


def test_nothing_unpickles_while_a_model_is_loaded(folder, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("unpickled")

    for where, name in (
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (torch, "load"),
    ):
        monkeypatch.setattr(where, name, refuse)
    assert Captioner.load(folder, "cpu")
    torch.save(toys.encoder_state(), folder / "model.safetensors")
    refused(folder)


@pytest.mark.parametrize("name", [*JSON_FILES, "model.safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"\xff" * 60_000_000, b'"' + b"\x1b" * 60_000_000 + b'"', b'["' + b"z" * 60_000_000 + b'"]'],
    ids=["bytes", "controls", "one text"],
)
def test_of_a_huge_file_the_error_shows_little(folder, name, content):
    (folder / name).write_bytes(content)
    refused_in_few_characters(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {"format_version": "v" * 10_000_000}),
        ("config.json", {"format_version": 1, "encoder": [["deep\x1b"] * 9] * 1_000_000}),
        ("preprocessor_config.json", {"resize_size": "r" * 10_000_000}),
        ("vocab.json", {"min_count": 1, "specials": "s\x9b" * 10_000_000, "words": {}}),
        ("vocab.json", {"w\u202e" * 10_000_000: 1}),
    ],
)
def test_of_a_huge_value_the_error_shows_little(folder, name, content):
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    refused_in_few_characters(folder)


def test_of_a_huge_word_the_error_shows_little(folder):
    path = folder / "vocab.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["words"]["w" * 60_000_000] = 1
    path.write_text(json.dumps(content), encoding="utf-8")
    refused_in_few_characters(folder)


@pytest.mark.parametrize("section", ["encoder", "decoder", "decoding"])
def test_of_a_huge_setting_the_error_shows_little(folder, section):
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for key in list(content[section]):
        changed = content | {section: content[section] | {key: {"k\x1b" * 1_000_000: 1}}}
        path.write_text(json.dumps(changed), encoding="utf-8")
        refused_in_few_characters(folder)
    changed = content | {section: content[section] | {"k\x1b\n" * 1_000_000: 1}}
    path.write_text(json.dumps(changed), encoding="utf-8")
    if section == "encoder":  # further keys are of later versions
        Captioner.load(folder)
    else:
        refused_in_few_characters(folder)


def refused_in_few_characters(folder):
    with pytest.raises(ModelError) as caught:
        Captioner.load(folder)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()
