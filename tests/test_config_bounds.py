"""Every number has bounds that its arithmetic bears, wherever it comes from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import config_edges
import pytest
import torch
from click.testing import CliRunner
from config_edges import Setting, edges
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captioner.captioner import Captioner
from captioner.captioning.ray import caption_with_ray
from captioner.captioning.records import caption_files
from captioner.captioning.sources import list_images
from captioner.cli import main
from captioner.config import Config
from captioner.data.caption_table import epoch_order
from captioner.encoder.encoder import FrozenEncoder
from captioner.errors import CaptionerError, ConfigError, ModelError, ShortageError, within_memory
from captioner.metrics.bootstrap import paired_test, resampled_sums
from captioner.system import world
from captioner.system.cores import cores
from captioner.system.devices import choose_device
from captioner.system.workers import WithinMemory
from captioner.training import run as training_run
from captioner.training.run import train
from captioner.training.update import check_room

import toys

WORDS = len(toys.WORDS)
NUMBERS = [each for each in config_edges.settings() if each.kind in (int, float)]
DEVICES = [
    "meta",
    "hpu",
    "privateuseone",
    "cuda:99",
    "xpu",
    "",
    "cpu:x",
    "no such",
    "vulkan",
    "-1",
    "cuda:-1",
    "CPU",
]


@pytest.mark.parametrize("section", list(config_edges.USES))
def test_values_inside_are_borne_and_values_outside_are_one_line(section):
    found = [edge for edge in edges() if edge.setting.section == section]
    assert sum(edge.allowed for edge in found) > 1
    wrong = {str(edge): said for edge in found if (said := config_edges.check(edge))}
    assert not wrong


@pytest.mark.parametrize("setting", NUMBERS, ids=lambda s: f"{s.section}.{s.name}")
def test_every_number_has_two_bounds(setting):
    assert setting.low is not None
    assert setting.high is not None


def values(setting: Setting) -> st.SearchStrategy[Any]:
    if setting.choices:
        return st.sampled_from(setting.choices)
    if setting.kind is bool:
        return st.booleans()
    if setting.kind is int:
        return st.integers(setting.low, setting.high)
    return st.floats(
        setting.low, setting.high, exclude_min=setting.open_low, exclude_max=setting.open_high
    )


@st.composite
def sections(draw, section: str, *, small: dict[str, int]) -> Config:
    """A whole section at random; what only takes time is kept small."""
    chosen: dict[str, Any] = {}
    for setting in config_edges.settings():
        if setting.section != section:
            continue
        needs = config_edges.beside(section, setting.name)
        if section != "decoding" and (needs or setting.name == "objective"):
            continue
        value = draw(values(setting))
        if setting.name == "min_length":  # `steered` refuses more than the model's words can fill
            value = min(value, chosen["max_length"], WORDS)
        chosen[setting.name] = min(value, small.get(setting.name, value))
    return Config.model_validate({section: chosen})


QUICK = settings(max_examples=60, suppress_health_check=list(HealthCheck))


@QUICK
@given(sections("decoding", small={"beam_size": 20, "max_length": 30}))
def test_any_decoding_gives_numbers(config):
    assert config_edges.USES["decoding"](config) is None


@QUICK
@given(sections("training", small={}))
def test_any_training_takes_a_step(config):
    assert config_edges.USES["training"](config) is None


@QUICK
@given(sections("decoder", small={}))
@pytest.mark.slow
def test_any_decoder_is_built_or_refused(config):
    assert config_edges.USES["decoder"](config) is None


def test_a_decoder_that_cannot_be_allocated_is_refused_before_it_is(tmp_path, monkeypatch):
    tree = toys.config(tmp_path).model_dump()
    tree["decoder"]["hidden_size"] = 2**16
    monkeypatch.setattr("captioner.training.update.free_memory", lambda _: 10**10)
    monkeypatch.setattr(training_run, "Decoder", None)
    with pytest.raises(ConfigError) as caught:
        train(Config.model_validate(tree), tmp_path / "run", device="cpu")
    assert "decoder.hidden_size 65,536" in str(caught.value)
    assert "GB, 10.0 GB are free; lower these settings" in str(caught.value)


def test_the_room_a_decoder_takes_is_that_of_its_weights_gradients_and_moments(monkeypatch):
    about, features = toys.decoder().config, {"feature_size": 6, "places": 0, "channels": 0}
    weights = sum(p.numel() for p in toys.decoder().parameters())
    for decay, copies in ((0.0, 4), (0.9, 5)):
        training = Config.model_validate({"training": {"ema_decay": decay}}).training
        monkeypatch.setattr(
            "captioner.training.update.free_memory", lambda _, n=copies: 4 * n * weights
        )
        check_room(about, training, torch.device("cpu"), vocab_size=20, features=features)
        monkeypatch.setattr(
            "captioner.training.update.free_memory", lambda _, n=copies: 4 * n * weights - 1
        )
        with pytest.raises(ConfigError, match="GB are free"):
            check_room(about, training, torch.device("cpu"), vocab_size=20, features=features)


# ---------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bounds") / "model"
    toys.captioner(hidden_size=4, embed_size=3).save(folder)
    return folder


@pytest.fixture
def picture(tmp_path):
    return toys.draw(tmp_path / "red.png", "red")


def invoke(*words: object):
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert not done.exception or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.mark.parametrize(
    "words",
    [
        *(f"--{s.name.replace('_', '-')} {value}" for s in NUMBERS if s.section == "decoding"
          for value in (*s.outside()[:2], "nan", "inf", "1e400", 10**30, 10**400)),
        "--n-best 0", "--n-best 1001", f"--n-best {10**30}",
        "--batch-size 0", f"--batch-size {10**30}",
        "--num-workers 0", f"--num-workers {10**30}",
        f"--max-pixels {10**30}", "--max-pixels 0",
        "--engine ray --output o.jsonl --num-gpus nan",
        "--engine ray --output o.jsonl --num-gpus inf",
        "--engine ray --output o.jsonl --num-gpus 1e30",
    ],
)  # fmt: skip
def test_a_number_outside_is_a_usage_error(model, picture, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = invoke("caption", picture, "--model", model, *words.split())
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()[-1]) < 900
    assert not done.stdout


@pytest.mark.parametrize(
    "words",
    [
        *(f"--search sample {words}" for words in (
            "--temperature 0.001", "--temperature 1000", "--top-p 1e-6", "--top-k 1000000000",
            f"--top-k 2 --seed {2**63 - 1}", "--top-k 3 --n-best 1000",
        )),
        "--length-penalty 10", "--length-penalty 0",
        "--beam-size 1000", "--max-length 1000", "--no-repeat-ngram-size 1000",
        "--batch-size 65536", f"--max-pixels {2**40}",
    ],
)  # fmt: skip
def test_a_number_at_its_bound_captions(model, picture, words):
    done = invoke("caption", picture, "--model", model, *words.split())
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_that_computes_nothing_here_is_one_line(model, picture, device):
    done = invoke("caption", picture, "--model", model, "--device", device)
    assert done.exit_code == 2
    assert f"--device {device}: not available here; choose" in done.stderr
    with pytest.raises(ConfigError, match="not available here"):
        choose_device(device)


def test_the_processor_has_one_name():
    assert choose_device("cpu:0") == torch.device("cpu")
    with pytest.raises(ConfigError, match="device: must be str or device, given None"):
        choose_device(None)


@pytest.mark.parametrize(
    "words",
    [f"--resamples {10**30}", "--resamples -1", f"--seed {2**63}", "--seed -1", "--seed nan"],
)
def test_scores_have_bounds_too(words, tmp_path):
    (tmp_path / "a.txt").write_text("a cat\na dog\n")
    for verb in ("score", "compare"):
        done = invoke(verb, tmp_path / "a.txt", tmp_path / "a.txt", *words.split())
        assert done.exit_code == 2
    with pytest.raises(ConfigError, match="resamples: must be 1 to"):
        resampled_sums(torch.ones(3, 2).numpy(), resamples=10**12, seed=0)
    with pytest.raises(ConfigError, match="seed: must be 0 to"):
        resampled_sums(torch.ones(3, 2).numpy(), resamples=3, seed=-1)


def test_the_largest_seed_scores():
    ones = torch.ones(3, 2).numpy()
    test = paired_test(ones, ones, lambda sums: sums[..., :1], resamples=3, seed=2**63 - 1)
    assert test.difference.tolist() == [0.0]


# ---------------------------------------------------------------------- Python


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1e300}, {"temperature": math.nan}, {"top_p": 1e-300}, {"top_k": -1},
        {"length_penalty": 300}, {"seed": 2**63}, {"seed": -1}, {"beam_size": 10**5000},
        {"max_length": "many"}, {"beam_size": None}, {"beam_size": True}, {"top_p": [1]},
    ],
)  # fmt: skip
def test_python_has_the_same_bounds(options, picture):
    captioner = toys.captioner(hidden_size=4)
    for images in (picture, [picture]):
        with pytest.raises(ConfigError) as caught:
            list(captioner.caption(images, **options))
        assert str(caught.value).startswith(f"decoding.{next(iter(options))}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size: must be 1 to 65,536"),
        ({"batch_size": 10**5000}, "batch_size: must be 1 to 65,536"),
        ({"num_workers": -1}, "num_workers: must be 1 to 1,024"),
        ({"num_workers": 10**9}, "num_workers: must be 1 to 1,024"),
        ({"n_best": 0}, "n_best: must be 1 to"),
        ({"n_best": 10**9}, "n_best: must be 1 to"),
        ({"n_best": 1.5}, "n_best: must be 1 to"),
        ({"n_best": 10**9, "search": "sample"}, "n_best: must be 1 to 1,000"),
    ],
)
def test_files_are_captioned_within_bounds(options, words, picture):
    with pytest.raises(ConfigError, match=words):
        captioner = toys.captioner()
        asked = toys.options(captioner, **options)
        list(caption_files(captioner, list_images([str(picture)]), *asked))


@pytest.mark.parametrize("gpus", [math.nan, math.inf, -1, 10**30])
def test_a_worker_has_a_number_of_gpus(gpus, model, tmp_path, monkeypatch):
    monkeypatch.setattr("captioner.captioning.ray._ray", lambda: None)
    with pytest.raises(ConfigError, match="num_gpus: must be 0 to"):
        caption_with_ray(model, (), tmp_path / "o.jsonl", num_gpus=gpus)


# ---------------------------------------------------------------------- models of others


@pytest.mark.parametrize(
    "edge",
    [e for e in edges() if e.setting.section in ("decoding", "decoder") and not e.allowed],
    ids=str,
)
def test_models_of_others_have_the_same_bounds(edge, model, tmp_path):
    try:
        value = json.loads(edge.value.replace(".nan", "NaN").replace(".inf", "Infinity"))
    except ValueError:
        value = edge.value
    folder = tmp_path / "model"
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config[edge.setting.section][edge.setting.name] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        Captioner.load(folder, "cpu")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 900


# ---------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 16.0 TiB for an array"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB\nof which"),
        RuntimeError("Storage size calculation overflowed with sizes=[9999999999, 9999999999]"),
    ],
)
def test_a_shortage_of_memory_is_one_line(error, model, picture, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    with (
        pytest.raises(ShortageError, match="not enough memory to train"),
        within_memory("to train"),
    ):
        fail()
    monkeypatch.setattr(Captioner, "search_each", fail)
    done = invoke("caption", picture, "--model", model)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("captioner: error: not enough memory to caption")
    captioner = toys.captioner()
    for images in (picture, [picture]):
        with pytest.raises(CaptionerError, match="not enough memory"):
            list(captioner.caption(images))
    monkeypatch.undo()
    features = torch.zeros(1, captioner.encoder.feature_size)
    monkeypatch.setattr("captioner.encoder.preprocess.Preprocess.pixels", fail)
    monkeypatch.setattr(type(captioner.decoder.init_hidden), "forward", fail)
    monkeypatch.setattr("captioner.captioner.embeddings", fail)
    calls: list[Callable[[], object]] = [
        lambda: captioner.encode(picture),
        lambda: captioner.search(features),
        lambda: captioner.score(picture, "a"),
        lambda: captioner.embed("a"),
        lambda: list(captioner.caption([picture])),
        lambda: list(caption_files(captioner, list_images([picture]))),
    ]
    for call in calls:
        with pytest.raises(ShortageError, match="not enough memory to"):
            call()


def test_a_shortage_while_a_cnn_is_built_is_not_blamed_on_its_arguments(monkeypatch):
    error = RuntimeError(
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    )
    monkeypatch.setattr("torchvision.models.get_model", Mock(side_effect=error))
    with pytest.raises(ShortageError, match="not enough memory to build the CNN alexnet"):
        FrozenEncoder.create("alexnet", "none")


def test_other_errors_are_no_shortage():
    with pytest.raises(RuntimeError, match="mat1"), within_memory("to train"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_batches_are_halved_on_a_processor_too():
    seen = []

    def short(batch):
        seen.append(len(batch))
        if len(batch) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return batch.sum()

    assert len(WithinMemory(short)(torch.ones(8))) == 4
    assert seen == [8, 4, 2, 2, 2, 2]


# ---------------------------------------------------------------------- seeds, environment


def test_seeds_order_alike_up_to_the_largest():
    lengths = torch.arange(3, 40)
    small = epoch_order(lengths, 8, seed=5, epoch=2)
    large = epoch_order(lengths, 8, seed=2**63 - 1, epoch=10**6)
    for batches in (small, large):
        assert sorted(torch.cat(batches).tolist()) == list(range(37))


@pytest.mark.parametrize("value", ["", "many", "0", "-1", "1.5", "nan", "9" * 30, "²"])
def test_ranks_of_a_machine_are_a_number(monkeypatch, value):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", value)
    with pytest.raises(ConfigError, match=r"\$LOCAL_WORLD_SIZE: must be 1 to"):
        cores()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORLD_SIZE", "many"), ("WORLD_SIZE", "0"), ("WORLD_SIZE", ""), ("RANK", None),
        ("RANK", "x"), ("RANK", "2"), ("RANK", "-1"), ("MASTER_PORT", "here"),
    ],
)  # fmt: skip
def test_a_place_among_processes_is_a_number(monkeypatch, name, value):
    for each, usual in (("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(each, usual)
    monkeypatch.delenv(name)
    if value is not None:
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ConfigError, match=rf"\${name}: must be"),
        world.joined(torch.device("cpu")),
    ):
        pass
