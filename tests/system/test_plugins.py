"""Plug-ins: the example package is used, and without it a model says what to install."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from captioner.captioner import Captioner
from captioner.cli import main
from captioner.config import Config, DecoderConfig
from captioner.data.load import load_dataset
from captioner.decoder.decoder import Decoder
from captioner.encoder.encoder import FrozenEncoder
from captioner.errors import CaptionerError, ConfigError, DataError, DivergedError, ModelError
from captioner.metrics import score_captions
from captioner.system.plugins import KINDS, _say_once, plugins
from captioner.training import loop
from captioner.training.run import Stopped, train

import toys

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"
MODULES = "captioner_example", "broken_plugin"


def forget() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in MODULES]:
        del sys.modules[name]


def install(site: Path, package: str, points: dict[str, str], version: str = "1.0") -> None:
    """Write the metadata of an installed package, as pip does; points are group -> lines."""
    info = site / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    texts = [f"[captioner.{kind}]\n{lines}\n" for kind, lines in points.items()]
    (info / "entry_points.txt").write_text("\n".join(texts))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that Python imports from."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    forget()


@pytest.fixture
def example(site: Path) -> Path:
    """The example package, installed with the entry points that its pyproject.toml states."""
    import tomllib

    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    points = {
        group.removeprefix("captioner."): "\n".join(f"{k} = {v}" for k, v in names.items())
        for group, names in project["entry-points"].items()
    }
    assert points.keys() == KINDS.keys()
    install(site, project["name"], points, project["version"])
    shutil.copytree(EXAMPLE / "captioner_example", site / "captioner_example")
    return site


def uninstall(site: Path) -> None:
    """Remove everything; the name of the folder changes, as the cache goes by sys.path."""
    for path in site.iterdir():
        shutil.rmtree(path)
    sys.path.append(str(site / "removed"))
    forget()


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [*map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        assert isinstance(result.exception, CaptionerError), repr(result.exception)
        return 1, f"{result.output}{result.exception}"
    return result.exit_code, result.output


def pairs(folder: Path) -> Path:
    lines = []
    for split, shades in (("train", range(3)), ("dev", [5]), ("test", [6])):
        for shade in shades:
            for colour in toys.COLOURS:
                toys.draw(folder / f"{split}_{colour}_{shade}.png", colour, shade)
                lines.append(f"{split} | {split}_{colour}_{shade}.png | a {colour} square")
    (folder / "pairs.txt").write_text("\n".join(lines) + "\n")
    return folder


def settings(folder: Path) -> Config:
    """Train with the plug-in's cell, backbone and data format."""
    return Config.model_validate(
        {
            "data": {"root": str(pairs(folder / "data")), "format": "pairs"},
            "text": {"min_count": 1},
            "encoder": {
                "backbone": "plugin:small",
                "weights": "none",
                "image_size": toys.SIZE,
                "precision": "fp32",
            },
            "decoder": {
                "cell": "leaky",
                "num_layers": 2,
                "hidden_size": 24,
                "embed_size": 12,
                "dropout": 0.1,
            },
            "training": {"epochs": 2, "batch_size": 8, "precision": "fp32", "warmup_steps": 2},
        }
    )


@pytest.mark.slow
def test_one_of_each_is_used_and_then_missed(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))
    train(settings(tmp_path), tmp_path / "run")
    model = tmp_path / "run" / "model"

    stated = json.loads((model / "config.json").read_text())["plugins"]
    assert [(each["kind"], each["name"]) for each in stated] == [
        ("cells", "leaky"),
        ("backbones", "small"),
    ]
    assert {(each["package"], each["version"]) for each in stated} == {("captioner-example", "1.0")}

    code, output = run("gradients", "--model", "run")
    assert code == 0, output
    code, output = run("evaluate", "--model", "run", "--metrics", "bleu,length_ratio")
    assert code == 0, output
    scores = json.loads((tmp_path / "run" / "evaluation" / "scores.json").read_text())
    signature = scores["length_ratio"]["signature"]
    assert "|plugin:captioner-example-1.0|" in signature
    assert "cell=leaky@captioner-example-1.0" in signature
    assert "plugin:" not in scores["bleu_4"]["signature"]

    pictures = sorted((tmp_path / "data").glob("test_*.png"))
    words = ["caption", *pictures, "--model", model, "--format", "markdown", "--output", "all.md"]
    code, output = run(*words)
    assert code == 0, output
    text = (tmp_path / "all.md").read_text()
    assert len(re.findall(r"^- .*test_\w+\.png: ", text, re.M)) == len(pictures)
    assert run(*words)[0] == 0  # captioner knows its own file and replaces it
    (tmp_path / "all.md").write_text("- my list\n")
    code, output = run(*words)
    assert code
    assert "is not a captions file that captioner wrote" in output

    uninstall(example)
    for words in (["caption", pictures[0], "--model", model], ["evaluate", "--model", "run"]):
        code, output = run(*words)
        assert code
        assert "needs the cell leaky of captioner-example 1.0" in output, output
        assert "pip install 'captioner-example==1.0'" in output


def test_the_cell_steps_as_it_reads_whole_captions(example: Path, tmp_path: Path) -> None:
    decoder = toys.decoder(cell="leaky", num_layers=2).eval()
    batch = toys.batch()
    with torch.no_grad():
        hidden = decoder.init_hidden(batch.features)
        whole, _ = decoder(batch.inputs, hidden)
        _, step = decoder.stepper().start(batch.features)
        for position in range(batch.inputs.shape[1]):
            ids = batch.inputs[:, position]
            logits, hidden = step(ids, hidden, torch.arange(len(ids)))
            torch.testing.assert_close(logits, whole[:, position])


def test_a_subclass_of_torchs_cell_searches_with_its_own_step(site: Path) -> None:
    (site / "broken_plugin.py").write_text(
        "import torch\n"
        "class Slow(torch.nn.GRU):\n"
        "    def __init__(self, *sizes, dropout):\n"
        "        super().__init__(*sizes, batch_first=True, dropout=dropout)\n"
        "    def forward(self, inputs, hidden):\n"
        "        return super().forward(0.1 * inputs, hidden)\n"
    )
    install(site, "slow-thing", {"cells": "slow = broken_plugin:Slow"})
    decoder, batch = toys.decoder(cell="slow").eval(), toys.batch()
    with torch.no_grad():
        hidden, step = decoder.stepper().start(batch.features)
        ids = batch.inputs[:, 0]
        logits, _ = step(ids, hidden, torch.arange(len(ids)))
        torch.testing.assert_close(logits, decoder.step(ids, hidden)[0])


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_model(example: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))
    config = settings(tmp_path)
    whole = train(config, tmp_path / "whole", device="cpu").folder
    update = loop.Updater.update

    def stop_once(self, step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, step)

    monkeypatch.setattr(loop.Updater, "update", stop_once)
    with pytest.raises(Stopped):
        train(config, tmp_path / "part", device="cpu")
    train(config, tmp_path / "part", device="cpu", resume=True)
    for name in ("config.json", "model.safetensors"):
        again = (tmp_path / "part" / "model" / name).read_bytes()
        assert again == (whole / "model" / name).read_bytes()


def test_other_versions_are_told(example: Path, tmp_path: Path, capsys) -> None:
    toys.captioner(cell="leaky").save(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["plugins"][0]["version"] = "0.9"
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    Captioner.load(tmp_path / "model")
    assert "written with captioner-example 0.9, installed is 1.0" in capsys.readouterr().err


def test_names_are_told(example: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cell: .*'elman', or the cell of a plug-in \(leaky\)"):
        DecoderConfig(cell="leakyy")
    with pytest.raises(ConfigError, match="of plug-ins: length_ratio"):
        score_captions([["a"]], [[["a"]]], metrics=["lenght"])
    with pytest.raises(DataError, match=r"sidecars, pairs"):
        load_dataset(tmp_path, format="pair")
    with pytest.raises(ModelError, match="installed: plugin:small"):
        FrozenEncoder.create("plugin:smal", "none")
    code, output = run("caption", "x.png", "--format", "markdwn")
    assert code == 2
    assert "markdown" in output
    assert "cell leaky" in (output := run("env")[1])
    assert "captioner-example-1.0" in output


def test_a_model_imports_nothing_but_entry_points(site: Path, tmp_path: Path) -> None:
    """A stranger's names of modules lead nowhere."""
    (site / "broken_plugin.py").write_text("raise SystemExit('imported')\n")
    toys.captioner().save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    good = json.loads(path.read_text())
    plugin = {"kind": "cells", "name": "x", "package": "p", "version": "1"}
    for stated in (
        [plugin],
        [plugin | {"name": "broken_plugin:x"}],
        [plugin | {"name": "broken_plugin"}],
        [plugin | {"kind": "writers"}],
        [plugin | {"package": "a; rm -rf /"}],
        [plugin | {"package": "--index-url=x"}],
        [plugin | {"version": "1' x"}],
        [plugin | {"name": "x\n"}],
        [plugin] * 1000,
        {"a": 1},
        "broken_plugin",
        None,
        5,
    ):
        path.write_text(json.dumps(good | {"plugins": stated}))
        with pytest.raises(ModelError) as error:
            Captioner.load(tmp_path / "model")
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    for cell in ("broken_plugin", "broken_plugin:x", "os.system"):
        path.write_text(json.dumps(good | {"decoder": good["decoder"] | {"cell": cell}}))
        with pytest.raises(ModelError):
            Captioner.load(tmp_path / "model")
    for backbone in ("plugin:broken_plugin", "plugin:os.system", "plugin:"):
        path.write_text(json.dumps(good | {"encoder": good["encoder"] | {"backbone": backbone}}))
        with pytest.raises(ModelError):
            Captioner.load(tmp_path / "model")
    assert "broken_plugin" not in sys.modules


BROKEN = {
    "absent": "broken_plugin:absent",
    "gone": "no_such_module:x",
    "number": "broken_plugin:number",
    "fails": "broken_plugin:fails",
    "exits": "broken_plugin:exits",
    "wrong": "broken_plugin:wrong",
}
SOURCE = """
import torch
number = 5
def fails(*args, **options): raise ValueError("my mistake")
def exits(*args, **options): raise SystemExit(3)
class wrong(torch.nn.Module):
    def __init__(self, *sizes, **options): super().__init__()
    def forward(self, inputs, hidden): return inputs, hidden
"""


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plug_in_is_one_line_that_names_its_package(site: Path, tmp_path, name) -> None:
    (site / "broken_plugin.py").write_text(SOURCE)
    line = f"{name} = {BROKEN[name]}"
    install(site, "broken-thing", dict.fromkeys(KINDS, line))
    assert len(plugins()) >= len(KINDS)
    (tmp_path / "a.txt").write_text("x")
    uses = {
        "cells": lambda: Decoder(DecoderConfig(cell=name), vocab_size=9, feature_size=4),
        "metrics": lambda: score_captions([["a"]], [[["a"]]], metrics=[name]),
        "datasets": lambda: load_dataset(tmp_path, format=name),
        "backbones": lambda: FrozenEncoder.create(f"plugin:{name}", "none"),
    }
    for use in uses.values():
        with pytest.raises(CaptionerError) as error:
            use()
        assert "broken-thing 1.0" in str(error.value)
        assert "\n" not in str(error.value)
    code, output = run("caption", tmp_path / "a.txt", "--format", name)
    assert code
    assert "broken-thing 1.0" in output
    assert toys.captioner().num_models == 1  # what does not name it works
    assert run("env")[0] == 0


def test_built_in_names_win_and_env_says_so(site: Path) -> None:
    (site / "broken_plugin.py").write_text("raise ValueError('imported')\n")
    install(site, "broken-thing", {"cells": "gru = broken_plugin:x", "metrics": "bleu = b:x"})
    assert isinstance(toys.decoder(cell="gru").cell, torch.nn.GRU)
    assert score_captions([["a"]], [[["a"]]], metrics=["bleu"])
    output = run("env")[1]
    assert re.search(r"cell gru +broken-thing-1.0 \(not used: captioner has its own\)", output)
    assert re.search(r"metric bleu +broken-thing-1.0 \(not used", output)


def test_two_packages_with_one_name_are_told(example: Path) -> None:
    install(example, "other-thing", {"cells": "leaky = captioner_example.leaky:Leaky"})
    both = "other-thing-1.0 and captioner-example-1.0"
    with pytest.raises(ConfigError, match=f"{both} add the cell leaky; uninstall all but one"):
        DecoderConfig(cell="leaky")
    assert "several of this name" in run("env")[1]


def test_a_package_that_adds_a_name_twice_is_told(site: Path) -> None:
    install(site, "other-thing", {"metrics": "ratio = a:b\nratio = c:d"})
    with pytest.raises(ConfigError, match=r"other-thing-1\.0 adds the metric ratio twice"):
        score_captions([["a"]], [[["a"]]], metrics=["ratio"])


def test_the_first_package_of_a_name_on_the_path_counts(site: Path) -> None:
    """As Python imports its module."""
    for folder, name in ((site, "old"), (site / "hidden", "new")):
        install(folder, "some-thing", {"metrics": f"{name} = a:b"})
    sys.path.append(str(site / "hidden"))
    assert [each.name for each in plugins("metrics") if each.package == "some-thing"] == ["old"]


SHADOWS = {
    "cells": "gru = broken_plugin:x",
    "metrics": "bleu = broken_plugin:x",
    "datasets": "csv = broken_plugin:x",
    "writers": "jsonl = broken_plugin:x",
    "backbones": "squeezenet1_1 = broken_plugin:x",
}
OWN = "not the plug-in's of broken-thing-1.0; its author can give it another name"
NOTES = {
    "cell": f"note: the cell gru is captioner's own, {OWN}",
    "metric": f"note: the metric bleu is captioner's own, {OWN}",
    "data": f"note: the data format csv is captioner's own, {OWN}",
    "output": f"note: the output format jsonl is captioner's own, {OWN}",
    "backbone": (
        "note: the backbone squeezenet1_1 is torchvision's, not the plug-in's of "
        "broken-thing-1.0; that is plugin:squeezenet1_1"
    ),
}


def test_each_command_says_once_that_a_built_in_name_is_not_the_plug_ins(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site / "broken_plugin.py").write_text("raise ValueError('imported')\n")
    install(site, "broken-thing", SHADOWS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))
    config = toys.config(tmp_path, epochs=1)
    (tmp_path / "toy.yaml").write_text(config.to_yaml())
    (tmp_path / "a.jsonl").write_text('{"image": "a.png", "caption": "a dog"}\n')
    score = ["score", "a.jsonl", "a.jsonl", "--metrics"]
    for words, wanted in (
        (["train", "toy.yaml", "--set", "data.format=csv", "--set", "decoder.cell=gru"], "cbdm"),
        (["caption", "dev_red_5.png", "--model", "runs/toy", "--format", "jsonl"], "cbo"),
        (["evaluate", "--model", "runs/toy", "--metrics", "bleu,rouge_l"], "cbdm"),
        ([*score, "bleu"], "m"),
        ([*score, "rouge_l"], ""),
        (["data", "captions.csv"], ""),  # the format is recognised, not named
    ):
        _say_once.cache_clear()
        code, output = run(*words)
        assert code == 0, output
        told = [line for line in output.splitlines() if "plug-in" in line]
        assert sorted(told) == sorted(text for kind, text in NOTES.items() if kind[0] in wanted), (
            words
        )
    monkeypatch.setenv("RANK", "1")
    _say_once.cache_clear()
    assert "plug-in" not in run(*score, "bleu")[1]


def test_a_model_of_a_plug_in_whose_name_captioner_took_is_refused(site: Path, tmp_path) -> None:
    install(site, "broken-thing", {"cells": "gru = broken_plugin:x"})
    toys.captioner(cell="gru").save(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    stated = {"kind": "cells", "name": "gru", "package": "broken-thing", "version": "1.0"}
    text = json.dumps(config | {"plugins": [stated]})
    (tmp_path / "model" / "config.json").write_text(text)
    with pytest.raises(ModelError, match="but captioner now has a cell of this name"):
        Captioner.load(tmp_path / "model")


WEAK = """
import torch
from captioner.captioning.writers import Writer
from captioner.metrics.metric import Metric

at = ""  # where it fails

def fail(place):
    if place == at:
        raise ValueError("my\\nmistake")

class Back(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x.clone()
    @staticmethod
    def backward(ctx, gradient):
        fail("backward")
        return gradient

class cell(torch.nn.Module):
    def __init__(self, embed, hidden, layers, *, dropout):
        super().__init__()
        self.gru = torch.nn.GRU(embed, hidden, layers, batch_first=True)
    def forward(self, inputs, hidden):
        if inputs.shape[1] != 3:  # those of the trial
            fail("forward")
        outputs, hidden = self.gru(inputs, hidden)
        return (Back.apply(outputs) if outputs.requires_grad else outputs), hidden

@torch.fx.wrap
def seen(images):
    if images.device.type != "meta":
        fail("backbone")
    return images

class Cnn(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, 10)
    def forward(self, images):
        return self.head(self.layer(seen(images)).mean((2, 3)))

class Score(Metric):
    names = ("weak",)
    formula = {"mean": "arithmetic"}
    def score(self, hypotheses):
        fail("score")
        return torch.ones(len(hypotheses)).double().numpy()
    def combine(self, sums):
        if sums.ndim == 1:
            fail("combine")
        return super().combine(sums)
    def fields(self):
        fail("fields")
        return self.formula

class Rows(Writer):
    def __init__(self, *given, **options):
        fail("writer")
        super().__init__(*given, **options)
    def _write(self, record):
        fail("row")
        self.file.write("- row\\n")
    def _close(self):
        fail("close")
"""


@pytest.fixture
def weak(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package whose things fail where its module says, a trained run and a config."""
    (site / "broken_plugin.py").write_text(WEAK)
    points = {
        "cells": "weak = broken_plugin:cell",
        "backbones": "weak = broken_plugin:Cnn",
        "metrics": "weak = broken_plugin:Score",
        "writers": "weak = broken_plugin:Rows",
    }
    install(site, "broken-thing", points)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))
    tree = toys.config(tmp_path, epochs=1).model_dump()
    tree["encoder"]["cnns"][0] |= {"backbone": "plugin:weak", "weights": "none"}
    tree["decoder"]["cell"] = "weak"
    (tmp_path / "toy.yaml").write_text(Config.model_validate(tree).to_yaml())
    code, output = run("train", "toy.yaml")
    assert code == 0, output
    import broken_plugin

    return broken_plugin


CAPTION = ("caption", "dev_red_5.png", "--model", "runs/toy")
EVALUATE = ("evaluate", "--model", "runs/toy", "--metrics", "bleu,weak")
EXPLAIN = ("explain", "dev_red_5.png", "--model", "runs/toy", "--output", "x.png")
FAILURES = [
    ("forward", ("train", "toy.yaml", "--output", "again")),
    ("backward", ("train", "toy.yaml", "--output", "again")),
    ("backbone", ("train", "toy.yaml", "--output", "again", "--set", "encoder.image_size=33")),
    ("forward", CAPTION),
    ("forward", (*CAPTION, "--output", "a.jsonl")),
    ("forward", (*CAPTION, "--output", "parts/")),
    ("backbone", CAPTION),
    ("forward", EVALUATE),
    ("score", EVALUATE),
    ("combine", EVALUATE),
    ("fields", EVALUATE),
    ("forward", EXPLAIN),
    ("backbone", EXPLAIN),
    ("forward", ("doctor", "--model", "runs/toy")),
    ("forward", ("gradients", "--model", "runs/toy")),
    ("backward", ("gradients", "--model", "runs/toy")),
    ("forward", ("export", "runs/toy", "programs", "--to", "torch")),
    ("backbone", ("export", "runs/toy", "programs", "--to", "torch")),
    ("writer", (*CAPTION, "--format", "weak")),
    ("row", (*CAPTION, "--format", "weak")),
    ("row", (*CAPTION, "--format", "weak", "--output", "a.txt")),
    ("close", (*CAPTION, "--format", "weak", "--output", "a.txt")),
]


def test_what_fails_in_a_plug_in_is_one_line_that_names_it(weak: Any, tmp_path: Path) -> None:
    wrong = []
    for at, words in FAILURES:
        weak.at = at
        result = CliRunner().invoke(main, words)
        line = "plug-in weak of broken-thing 1.0 fails: ValueError: my mistake"
        told = result.stderr.splitlines()[-1:]
        if result.exit_code not in (1, 2) or told != [f"captioner: error: {line}"]:
            wrong.append(f"{at} {words[0]} {result.exit_code} {result.exception!r} {told}")
    assert not wrong, "\n".join(wrong)
    weak.at = ""
    assert run(*CAPTION)[0] == 0


def test_machines_that_train_compare_their_plug_ins(weak: Any, monkeypatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        "captioner.training.run.check_alike", lambda identity, _: seen.append(identity["plug-ins"])
    )
    assert run("train", "toy.yaml", "--output", "again")[0] == 0
    assert seen == [["weak of broken-thing 1.0"] * 2]  # cell and CNN


def test_what_captioner_and_the_machine_raise_keeps_its_own_words(weak: Any) -> None:
    decoder, batch = toys.decoder(cell="weak"), toys.batch()
    for error in (DivergedError("diverged"), torch.OutOfMemoryError("CUDA out of memory")):

        def fail(place: str, error: Exception = error) -> None:
            raise error

        weak.fail = fail
        with pytest.raises(type(error)) as raised:
            decoder(batch.inputs, decoder.init_hidden(batch.features))
        assert raised.value is error


def test_each_file_of_the_example_is_short() -> None:
    files = [*(EXAMPLE / "captioner_example").glob("*.py")]
    assert len(files) == 6
    for path in files:
        assert len(path.read_text().splitlines()) < 40, path.name


RULES = """
import re
import torch
from torch import nn
from captioner.captioning.writers import Writer
from captioner.metrics.metric import Metric

class Cell(nn.Module):
    def __init__(self, embed_size, hidden_size, num_layers, *, dropout):
        super().__init__()
        self.gru = nn.GRU(embed_size, hidden_size, num_layers, batch_first=True)
    def forward(self, inputs, hidden):
        return self.change(*self.gru(inputs, hidden))
    def change(self, outputs, hidden):
        return outputs, hidden

class good(Cell): pass
class one(Cell):
    def change(self, outputs, hidden): return outputs
class two_states(Cell):
    def change(self, outputs, hidden): return outputs, (hidden, hidden)
class swapped(Cell):
    def change(self, outputs, hidden): return hidden, outputs
class double(Cell):
    def change(self, outputs, hidden): return outputs.double(), hidden
class over_time(Cell):
    def change(self, outputs, hidden): return outputs + outputs.mean(1, keepdim=True), hidden
class over_rows(Cell):
    def change(self, outputs, hidden): return outputs + outputs.mean(0, keepdim=True), hidden
class detached(Cell):
    def forward(self, inputs, hidden): return self.gru(inputs, hidden.detach())

class short(Metric):
    names, formula = ("short",), {}
    def score(self, hypotheses): return [1.0] * (len(hypotheses) - 1)
class no_score(Metric):
    names, formula = ("no_score",), {}
class no_names(Metric):
    formula = {}
    def score(self, hypotheses): return [1.0] * len(hypotheses)
class text_names(no_names):
    names = "text"
class no_formula(Metric):
    names = ("no_formula",)
    def score(self, hypotheses): return [1.0] * len(hypotheses)

class no_write(Writer): pass
class headed(Writer):
    line = re.compile(rb"<li>.*\\n")
    def _open(self): self.file.write("<ul>\\n")
    def _write(self, record): self.file.write(f"<li>{record.captions[0].text}\\n")
"""


@pytest.fixture
def rules(site: Path) -> Path:
    """A package whose cells, metrics and writers each break one rule of the contributor's page."""
    (site / "broken_plugin.py").write_text(RULES.replace("\\\\", "\\"))
    cells = ["good", "one", "two_states", "swapped", "double", "over_time", "over_rows", "detached"]
    metrics = ["short", "no_score", "no_names", "text_names", "no_formula"]
    groups = {"cells": cells, "metrics": metrics, "writers": ["no_write", "headed"]}
    points = {
        kind: "\n".join(f"{name} = broken_plugin:{name}" for name in names)
        for kind, names in groups.items()
    }
    install(site, "broken-thing", points)
    return site


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("one", r"forward must return two tensors \(outputs, hidden\), not Tensor"),
        ("two_states", r"must return two tensors \(outputs, hidden\), not \(Tensor, tuple\)"),
        ("swapped", r"have shapes \(2, 2, 8\) and \(2, 3, 8\), not \(\(2, 3, 8\), \(2, 2, 8\)\)"),
        ("double", "must have the dtype of inputs, not torch.float64"),
        ("over_time", "3 words in one call and in 3 calls differ"),
        ("over_rows", "2 captions together and each alone differ"),
        ("detached", "no gradient from outputs reaches hidden"),
    ],
)
def test_a_cell_that_breaks_a_rule_is_said_before_training(rules, cell, problem) -> None:
    config = DecoderConfig(cell=cell, num_layers=2, hidden_size=8, embed_size=4)
    with pytest.raises(
        ConfigError, match=rf"plug-in {cell} of broken-thing 1.0 fails: .*{problem}"
    ):
        Decoder(config, vocab_size=9, feature_size=4).try_cell()


def test_a_good_cell_is_tried_without_a_trace(rules: Path) -> None:
    config = DecoderConfig(cell="good", num_layers=2, hidden_size=8, embed_size=4)
    decoder = Decoder(config, vocab_size=9, feature_size=4)
    state = torch.get_rng_state()
    decoder.try_cell()
    assert torch.equal(torch.get_rng_state(), state)
    assert decoder.training and decoder.cell.training
    assert all(parameter.grad is None for parameter in decoder.parameters())


@pytest.mark.parametrize(
    ("metric", "problem"),
    [
        ("short", "1 scores for 2 images"),
        ("no_score", "must define score, or statistics and combine"),
        ("no_names", "names"),
        ("text_names", "names must be a tuple of texts"),
        ("no_formula", "formula"),
    ],
)
def test_a_metric_that_breaks_a_rule_is_one_line(rules, metric, problem) -> None:
    with pytest.raises(CaptionerError, match=rf"plug-in {metric} of broken-thing 1.0.*{problem}"):
        score_captions([["a"], ["b"]], [[["a"]], [["b"]]], metrics=[metric])


def test_a_writer_that_writes_nothing_is_said_before_the_job(rules: Path, tmp_path: Path) -> None:
    toys.draw(tmp_path / "a.png", "red", 1)
    code, output = run("caption", tmp_path / "a.png", "--format", "no_write", "--model", "scenes")
    assert code and "plug-in no_write of broken-thing 1.0: no_write must define _write" in output


def test_a_line_that_the_writer_would_not_know_again_is_said(rules: Path, tmp_path: Path) -> None:
    toys.draw(tmp_path / "a.png", "red", 1)
    job = ("caption", tmp_path / "a.png", "--model", "scenes", "--format", "headed")
    code, output = run(*job, "--output", tmp_path / "a.html")
    assert code and "plug-in headed of broken-thing 1.0: line 1 of its file, " in output
    assert "<ul>" in output and not (tmp_path / "a.html").exists()


def test_env_shows_what_is_added_in_vain(site: Path) -> None:
    install(site, "odd-thing", {"cell": "x = y:z", "cells": "my-cell = y:z\nMyCell = y:z"})
    output = run("env")[1]
    for name in ("my-cell", "MyCell"):
        assert re.search(rf"captioner.cells {name} +odd-thing-1.0 \(not used: a name has", output)
    assert re.search(r"captioner.cell x +odd-thing-1.0 \(not used: the groups are .*cells", output)
