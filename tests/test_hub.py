"""Models by name on the Hub: fetched once, pinned, strictly read; published whole and alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from captioner import hub
from captioner.captioner import Captioner
from captioner.cli import main
from captioner.errors import ConfigError, ModelError
from captioner.model_config import model_folder
from captioner.system.ownership import CARD, CARD_START, MODEL_FILES

import hub_server
import toys
from hub_server import READER, TOKEN

pytest.importorskip("huggingface_hub")
# The library's own, when it sends a large file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A hub on this machine, an empty cache, and nobody logged in."""
    from huggingface_hub import constants

    with hub_server.serve() as served:
        go_to(served.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        # Its server is not spoken to; the older way of large files is.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        hub.say_once.cache_clear()
        yield served


def go_to(url: str, monkeypatch) -> None:
    from huggingface_hub import constants

    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "toy"
    captioner = toys.captioner()
    captioner.card = f"{CARD_START}license: unknown\n---\n# A toy\n"
    captioner.save(folder)
    return folder


@pytest.fixture(scope="module")
def files(model):
    return {path.name: path.read_bytes() for path in model.iterdir()}


def invoke(*words: object):
    done = CliRunner().invoke(main, [*map(str, words)])
    assert "Traceback" not in done.output
    return done


def test_a_model_is_fetched_by_name_and_captions_as_the_original(site, model, files, tmp_path):
    commit = site.add("o/n", files | {"pytorch_model.bin": b"pickle", "x/vocab.json": b"{}"})
    picture = toys.draw(tmp_path / "a.png", "red")
    done = invoke("caption", picture, "--model", "hub:o/n")
    assert done.exit_code == 0, done.output
    assert done.stdout == invoke("caption", picture, "--model", model).stdout
    assert f"hub:o/n: commit {commit}, downloads 5 files" in done.stderr
    folder = model_folder("hub:o/n")
    assert {path.name for path in folder.iterdir()} == {*MODEL_FILES, CARD}
    assert not site.seen("pickle") + site.seen("pytorch_model.bin") + site.seen("x/")
    assert folder.is_relative_to(tmp_path / "hub")
    loaded = Captioner.load("hub:o/n", "cpu")
    assert loaded.card == Captioner.load(model, "cpu").card


def test_what_is_cached_needs_no_network_and_keeps_its_commit(site, files, monkeypatch, capsys):
    first = site.add("o/n", files)
    folder = model_folder("hub:o/n")
    second = site.repositories["o/n"].commit("main", {"x": b""})
    site.requests.clear()
    for name in ("hub:o/n", f"hub:o/n@{first}", "hub:o/n@main", Path("hub:o/n")):
        assert model_folder(name) == folder
    assert site.requests == []
    assert f"hub:o/n: commit {first}, from the cache" in capsys.readouterr().err
    assert model_folder(f"hub:o/n@{second}").name == second
    go_to("http://127.0.0.1:1", monkeypatch)
    assert model_folder("hub:o/n") == folder
    assert Captioner.load(f"hub:o/n@{second}", "cpu").vocabulary.words


def test_a_revision_is_a_branch_a_tag_or_a_commit(site, files):
    main = site.add("o/n", files)
    repository = site.repositories["o/n"]
    other = repository.commit("refs/pr/1", {CARD: b"---\nlibrary_name: captioner\n---\nother\n"})
    assert model_folder("hub:o/n@refs/pr/1").name == other
    assert "other" in Captioner.load("hub:o/n@refs/pr/1", "cpu").card
    assert model_folder("hub:o/n").name == main


def test_an_interrupted_download_is_finished(site, files):
    site.add("o/n", files)
    folder = model_folder("hub:o/n")
    (folder / "model.safetensors").unlink()
    assert model_folder("hub:o/n") == folder
    assert Captioner.load("hub:o/n", "cpu")


def refused(name: str) -> str:
    with pytest.raises(ModelError) as caught:
        model_folder(name)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(name), text
    return text


@pytest.mark.parametrize(
    "name",
    ["hub:", "hub:n", "hub:a/b/c", "hub:../x", "hub:a/..", "hub:a b/c", "hub:-a/b", "hub:a/b--c"],
)
def test_a_wrong_name_is_refused_without_a_request(site, name):
    assert "write hub:OWNER/NAME" in refused(name)
    assert site.requests == []


@pytest.mark.parametrize("revision", ["", "../../x", "/etc", "a b", "-x"])
def test_a_wrong_revision_is_refused_without_a_request(site, revision):
    assert "is not a branch, tag or commit" in refused(f"hub:o/n@{revision}")
    assert site.requests == []


def test_what_cannot_be_fetched_is_one_clear_line(site, files, monkeypatch):
    site.add("o/n", files)
    site.add("o/secret", files, private=True)
    site.add("o/gated", files, gated=True)
    site.add("o/other", {"config.json": b"{}", "pytorch_model.bin": b""})
    assert "log in with `hf auth login`" in refused("hub:o/none")
    assert "or a private one" in refused("hub:o/secret")
    assert "has no revision v9" in refused("hub:o/n@v9")
    assert "its owner grants access on request" in refused("hub:o/gated")
    assert "not a model of captioner" in refused("hub:o/other")
    assert "holds no model.safetensors" in refused("hub:o/other")
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "your token gives no access" in refused("hub:o/none")
    assert model_folder("hub:o/secret").is_dir()
    site.fails = 503
    assert "the Hub answers 503" in refused("hub:o/n")
    go_to("http://127.0.0.1:1", monkeypatch)
    assert "not in the cache, and no connection to http://127.0.0.1:1" in refused("hub:o/n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("hub:o/n")
    done = invoke("caption", "a.png", "--model", "hub:o/n")
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "size"),
    [("config.json", 2**27), ("vocab.json", 2**27), ("model.safetensors", 2**34), (CARD, 2**21)],
)
def test_a_file_that_is_too_large_is_not_fetched(site, files, file, size):
    site.add("o/n", files)
    site.sizes[file] = size
    assert f"{file} is {size:,} bytes" in refused("hub:o/n")
    assert not site.seen("/resolve/")


def test_a_fetched_model_is_read_strictly(site, files):
    site.add("o/n", files | {"model.safetensors": b"\x80\x04pickle"})
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        Captioner.load("hub:o/n", "cpu")
    site.add("o/m", files | {"config.json": b"{}"})
    with pytest.raises(ModelError, match="not a captioner model config"):
        Captioner.load("hub:o/m", "cpu")


def test_results_of_a_fetched_model_do_not_go_to_the_cache(site, files, tmp_path, monkeypatch):
    site.add("o/n", files)
    data = toys.data_set(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = invoke("evaluate", "--model", "hub:o/n", "--data", data, "--split", "dev")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "evaluation" / "o--n" / "scores.json").is_file()
    cached = model_folder("hub:o/n")
    assert [path.name for path in cached.parent.iterdir()] == [cached.name]


def test_a_run_starts_from_a_fetched_model(site, tmp_path):
    from captioner.training.run import train

    config = toys.config(tmp_path)
    first = train(config, tmp_path / "a", device="cpu").folder / "model"
    site.add("o/n", {path.name: path.read_bytes() for path in first.iterdir()})
    config = toys.config(tmp_path, start_from="hub:o/n")
    folder = train(config, tmp_path / "b", device="cpu").folder
    assert "start_from: hub:o/n" in (folder / "model" / CARD).read_text()
    with pytest.raises(ConfigError, match=r"training\.start_from: hub:o/none: no such model"):
        train(toys.config(tmp_path, start_from="hub:o/none"), tmp_path / "c", device="cpu")


def test_published_is_what_is_fetched(site, model, files, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "run").mkdir()
    run = tmp_path / "run" / "model"
    Captioner.load(model, "cpu").save(run)
    (tmp_path / "run" / "secret.txt").write_text("secret")
    done = invoke("publish", tmp_path / "run", "me/toy", "--private")
    assert done.exit_code == 0, done.output
    [name] = done.stdout.splitlines()
    repository = site.repositories["me/toy"]
    assert repository.private
    assert name == f"hub:me/toy@{repository.branches['main']}"
    assert repository.commits[repository.branches["main"]] == files | {".gitattributes": b""}
    sizes = [f"  {file}  {len(files[file]):,} bytes" for file in (*MODEL_FILES, CARD)]
    total = sum(map(len, files.values())) / 1e6
    assert done.stderr.splitlines() == [
        *sizes,
        f"uploading 5 files, {total:.1f} MB to hub:me/toy",
        f"next: captioner caption IMAGE --model {name}",
    ]
    assert Captioner.load(name, "cpu").vocabulary == Captioner.load(model, "cpu").vocabulary
    again = invoke("publish", model, "me/toy")
    assert again.exit_code == 0, again.output


def test_a_branch_is_published_beside_main(site, model, files, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    site.add("me/toy", {".gitattributes": b"", "notes.txt": b"mine"})
    done = invoke("publish", model, "me/toy", "--revision", "v2")
    assert done.exit_code == 0, done.output
    repository = site.repositories["me/toy"]
    assert repository.commits[repository.branches["v2"]].keys() >= files.keys() | {"notes.txt"}
    assert not repository.commits[repository.branches["main"]].keys() & files.keys()
    assert Captioner.load("hub:me/toy@v2", "cpu")


def test_a_dry_run_asks_nobody_and_writes_nothing(site, model, tmp_path):
    toys.captioner().save(tmp_path / "m")
    before = sorted(path.name for path in (tmp_path / "m").iterdir())
    done = invoke("publish", tmp_path / "m", "me/toy", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "would upload 4 files" in done.stdout
    assert "would write the missing model card" in done.stderr
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == before
    assert site.requests == []


def test_a_missing_card_is_written_and_a_foreign_readme_refused(site, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    folder = tmp_path / "m"
    toys.captioner().save(folder)
    assert invoke("publish", folder, "me/toy").exit_code == 0
    card = site.repositories["me/toy"].commits[site.repositories["me/toy"].branches["main"]][CARD]
    assert card == (folder / CARD).read_bytes()
    assert b"The settings of the training are not known" in card
    (folder / CARD).write_text("mine")
    done = invoke("publish", folder, "me/toy")
    assert done.exit_code == 1
    assert "README.md: not a model card of captioner" in done.stderr


def test_what_cannot_be_published_is_one_clear_line(site, model, monkeypatch, tmp_path):
    def refused(*words: str) -> str:
        site.requests.clear()
        done = invoke("publish", *words)
        assert done.exit_code in (1, 2)
        assert done.stdout == ""
        lines = [line for line in done.stderr.splitlines() if line.startswith("captioner: error: ")]
        assert len(lines) == 1, done.stderr
        assert not site.seen("/commit/")
        return lines[0]

    assert "no token: log in" in refused(model, "me/toy")
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "the token may not write there" in refused(model, "me/toy")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("toy", "a/b/c", "a b/c", "../x", "hub:me/toy"):
        assert "not the name of a repository" in refused(model, name)
        assert site.requests == []
    assert "not the name of a branch" in refused(model, "me/toy", "--revision", "../x")
    assert "no model here" in refused(tmp_path, "me/toy")
    site.add("me/public", {})
    assert "exists and is public" in refused(model, "me/public", "--private")
    site.add("me/other", {"config.json": b'{"model_type": "bert"}'})
    assert "captioner did not write" in refused(model, "me/other")
    go_to("http://127.0.0.1:1", monkeypatch)
    assert "no connection to http://127.0.0.1:1" in refused(model, "me/toy")


def test_without_the_library_one_line_says_what_to_install(monkeypatch, model):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match=r"pip install 'captioner\[hub\]'"):
        model_folder("hub:o/n")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    done = invoke("publish", model, "me/toy")
    assert "pip install 'captioner[hub]'" in done.stderr
    assert done.exit_code == 2


SCRIPT = """
import json, sys
from captioner import Captioner
Captioner.load(sys.argv[1], "cpu")
print(json.dumps([name for name in sys.modules if name.startswith("huggingface_hub")]))
"""


def test_the_library_is_imported_only_for_a_model_on_the_hub(site, model, files, tmp_path):
    """In a process of its own, which goes where HF_ENDPOINT and HF_HOME say."""
    site.add("o/n", files)
    env = os.environ | {"HF_ENDPOINT": site.url, "HF_HOME": str(tmp_path / "hf")}
    for name, imported in ((str(model), False), ("hub:o/n", True)):
        words = [sys.executable, "-c", SCRIPT, name]
        done = subprocess.run(words, capture_output=True, text=True, check=True, env=env)
        assert bool(json.loads(done.stdout)) is imported
    assert (tmp_path / "hf" / "hub" / "models--o--n" / "snapshots").is_dir()


def test_the_hub_reads_the_metadata_of_a_card(tmp_path):
    from huggingface_hub import ModelCard

    from captioner.training.run import train

    folder = train(toys.config(tmp_path), tmp_path / "run", device="cpu").folder
    card = ModelCard.load(folder / "model" / CARD)
    assert card.data.library_name == "captioner"
    assert card.data.pipeline_tag == "image-to-text"
    assert {result.metric_name for result in card.data.eval_results} >= {"BLEU-4", "CIDEr"}
    assert {result.task_type for result in card.data.eval_results} == {"image-to-text"}
    assert all(0 <= result.metric_value <= 10 for result in card.data.eval_results)
