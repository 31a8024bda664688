"""Which model a command takes, and what `captioner models` lists."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from captioner import model_config
from captioner.captioner import Captioner
from captioner.cli import main
from captioner.config import bundled
from captioner.errors import ModelError
from captioner.model_config import bundled_model, bundled_name, model_folder
from captioner.model_list import list_models
from captioner.run_dir import config_of_model, find_model, find_models, results_folder

import toys

EPOCH = '{"kind": "epoch", "epoch": %d, "step": %d, "bleu_4": %s, "cider_d": %s, "dev_loss": %s}\n'


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "model"
    toys.captioner().save(folder)
    return folder


def put(model: Path, run: Path, time: int = 0) -> Path:
    """Copy a model into a run; return its folder."""
    (run / "model").mkdir(parents=True)
    for file in model.iterdir():
        (run / "model" / file.name).write_bytes(file.read_bytes())
    os.utime(run / "model" / "config.json", (time, time))
    return run / "model"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A folder to work in; the package bundles nothing."""
    monkeypatch.setattr(model_config, "bundled", lambda name: tmp_path / "package" / name)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def package(home: Path, made: Path, *names: str) -> list[Path]:
    return [put(made, home / "package" / "models" / name) for name in names]


def found(*models: str) -> tuple[list[Path], list[str]]:
    said: list[str] = []
    return find_models(tuple(map(Path, models)), said.append), said


def test_each_default_steps_back_where_a_better_one_is(home, made, monkeypatch):
    with pytest.raises(ModelError, match="no finished run in runs/; train a model with"):
        find_model(None)
    photos, scenes = package(home, made, "photos", "scenes")
    assert found() == ([photos], ["model: photos (bundled with captioner)"])
    put(made, Path("runs/old"), time=1000)
    new = put(made, Path("runs/new"), time=2000)
    Path("runs/unfinished/checkpoints").mkdir(parents=True)
    assert found() == ([new], ["model: runs/new/model (the newest run)"])
    monkeypatch.setenv("CAPTIONER_MODEL", "runs/old")
    folder = Path("runs/old/model")
    assert found() == ([folder], ["model: runs/old/model ($CAPTIONER_MODEL)"])
    monkeypatch.setenv("CAPTIONER_MODEL", "scenes")
    assert found() == ([scenes], ["model: scenes ($CAPTIONER_MODEL)"])
    assert found("runs/new") == ([new], [])
    assert found("photos", "runs/old") == ([photos, folder], [])


def test_scenes_alone_is_no_default_for_photographs(home, made):
    package(home, made, "scenes")
    with pytest.raises(ModelError, match="no finished run"):
        find_model(None)


def test_a_model_here_wins_over_the_bundled_one_of_its_name_and_says_so(home, made):
    (scenes,) = package(home, made, "scenes")
    put(made, Path("runs/scenes"))
    Path("scenes/images").mkdir(parents=True)
    assert found("scenes") == ([scenes], [])  # neither a run under runs/ nor a folder of images
    here = put(made, Path("scenes"))
    assert found("scenes") == (
        [here],
        ["model: scenes/model (this folder, not the bundled model scenes)"],
    )
    assert found("./scenes")[0] == [here]


def test_a_bundled_model_loads_by_its_name(home, made):
    (photos,) = package(home, made, "photos")
    assert Captioner.load("photos", "cpu").vocabulary == Captioner.load(made, "cpu").vocabulary
    assert bundled_name(photos) == "photos"
    assert bundled_name(home / "work" / ".." / "package" / "models" / "photos" / "model")
    assert bundled_name(made) is None


def test_results_of_a_bundled_model_stay_out_of_the_package(home, made):
    (photos,) = package(home, made, "photos")
    assert results_folder(photos, "evaluation") == Path("evaluation/photos")
    assert results_folder(Path("runs/a/model"), "evaluation") == Path("runs/a/evaluation")


def test_a_bundled_model_that_is_absent_is_named(home):
    with pytest.raises(ModelError, match="photos: this captioner bundles no such model, and there"):
        model_folder("photos")
    Path("photos").mkdir()
    with pytest.raises(ModelError, match=r"photos: no model here: expected config\.json"):
        model_folder("photos")


def test_the_bundled_scenes_model_is_small_complete_and_knows_its_data():
    run = bundled_model("scenes")
    assert run
    assert sum(path.stat().st_size for path in run.rglob("*") if path.is_file()) <= 2_000_000
    config = config_of_model(run / "model")
    assert config.data.root == "bundled:data/scenes"
    picture = bundled("data/scenes/images/test-0000.png")
    assert Captioner.load("scenes", "cpu").caption(picture) == "two small pink squares"
    (listed,) = (each for each in list_models() if each.name == "scenes")
    assert listed.problem == ""
    assert listed.scores["bleu_4"] > 0.98


def metrics(run: Path, *epochs: tuple[object, object, object]) -> None:
    lines = (EPOCH % (number, number, *epoch) for number, epoch in enumerate(epochs, 1))
    (run / "metrics.jsonl").write_text("".join(lines))


def listed() -> str:
    done = CliRunner().invoke(main, ["models"])
    assert done.exit_code == 0
    return done.output


def test_nothing_to_list_is_said(home):
    assert "no models: no run in runs/; train a model" in listed()


def test_runs_are_listed_newest_first_then_the_bundled_ones(home, made):
    package(home, made, "photos", "scenes")
    put(made, Path("runs/old"), time=86_400)
    metrics(Path("runs/old"), (0.2, 0.5, 3), (0.1, 0.6, 2), (0.3, 0.4, 1))
    put(made, Path("runs/new"), time=10 * 86_400)
    metrics(Path("runs/new"), (0.2, "null", 3), (0.1, "null", 2))
    Path("runs/new/config.yaml").write_text("training: {metric: cider_d}")
    Path("runs/evaluation").mkdir()
    Path("runs/a-seeds.json").write_text("{}")
    head, *rows = (line.split() for line in listed().splitlines())
    assert head == ["NAME", "BLEU-4", "CIDER-D", "MB", "WRITTEN"]
    assert [row[0] for row in rows] == ["runs/new", "runs/old", "photos", "scenes"]
    assert rows[0][1:3] == ["0.100", "-"]  # of undefined scores, the lowest loss
    assert rows[1][1:3] == ["0.100", "0.600"]
    assert rows[2][1:] == ["-", "-", rows[2][3], "bundled"]
    assert rows[1][4].startswith("1970-01-0")
    assert float(rows[1][3]) == round(sum(f.stat().st_size for f in made.iterdir()) / 1e6, 1)


def test_the_metric_of_the_run_chooses_its_best_epoch(home, made):
    put(made, Path("runs/a"))
    metrics(Path("runs/a"), (0.2, 0.5, 3), (0.3, 0.4, 1))
    assert list_models()[0].scores == {"bleu_4": 0.2, "cider_d": 0.5}
    Path("runs/a/config.yaml").write_text("training: {metric: bleu_4}")
    assert list_models()[0].scores == {"bleu_4": 0.3, "cider_d": 0.4}


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("config.json", b"{", "config.json: not a captioner model config"),
        ("config.json", b'{"format_version": 9}', "config.json: format version 9, this captioner"),
        ("model.safetensors", b"x" * 50, "model.safetensors: cannot be read"),
        ("model.safetensors", None, "model.safetensors is missing"),
        ("vocab.json", None, "vocab.json is missing"),
        ("preprocessor_config.json", None, "preprocessor_config.json is missing"),
    ],
)
def test_a_broken_model_has_a_row_that_says_so(home, made, name, content, problem):
    model = put(made, Path("runs/broken"))
    put(made, Path("runs/sound"), time=5)
    (model / name).unlink()
    if content is not None:
        (model / name).write_bytes(content)
        os.utime(model / name, (0, 0))
    rows = listed().splitlines()[1:]
    assert len(rows) == 2
    (row,) = (row for row in rows if "runs/broken" in row)
    assert problem in row
    assert "\n" not in row.strip()


@pytest.mark.parametrize("content", ["[", "training: 5", "- 1", "training: {metric: [1]}", "\0"])
def test_runs_with_broken_small_files_are_listed(home, made, content):
    put(made, Path("runs/a"))
    metrics(Path("runs/a"), (0.2, 0.5, 3))
    with Path("runs/a/metrics.jsonl").open("a") as file:
        file.write('{"kind": "epoch"}\n\x00\n')
    Path("runs/a/config.yaml").write_text(content)
    assert list_models()[0].scores == {"bleu_4": 0.2, "cider_d": 0.5}


def test_an_unfinished_run_and_a_model_alone_are_listed(home, made):
    Path("runs/begun").mkdir(parents=True)
    Path("runs/begun/config.yaml").write_text("")
    Path("runs/alone").mkdir()
    for file in made.iterdir():
        Path("runs/alone", file.name).write_bytes(file.read_bytes())
    problems = {each.name: each.problem for each in list_models()}
    assert problems == {"runs/begun": "no model yet: not finished", "runs/alone": ""}


def test_the_list_needs_no_torch(tmp_path):
    script = "import sys\nfrom captioner.cli import main\nmain(['models'], standalone_mode=False)\n"
    script += "sys.exit(bool({'torch', 'torchvision', 'matplotlib', 'nltk'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True)
