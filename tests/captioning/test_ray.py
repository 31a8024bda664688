"""The same captions from a cluster: a small real one, started here."""

from __future__ import annotations

import io
import json
import os
import platform
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import stores
from click.testing import CliRunner
from deadly import Deadly

from captioner.captioner import Captioner
from captioner.captioning import crew
from captioner.captioning import ray as cluster
from captioner.captioning.crew import DIED
from captioner.captioning.job import caption_to_file
from captioner.captioning.ray import caption_with_ray
from captioner.captioning.records import CaptioningOptions, Record, Totals, caption_files
from captioner.captioning.sources import Item, list_images
from captioner.captioning.wording import Wording
from captioner.captioning.writers import JsonLinesWriter
from captioner.cli import main
from captioner.encoder.given_features import GivenFeatures
from captioner.errors import ConfigError, ImageError, ModelError
from captioner.images.content import Slice
from captioner.model_config import fingerprint
from captioner.system import object_store

import toys

# Ray and what it brings warn of their own insides.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore:.*:ResourceWarning:ray"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:ray"),
    pytest.mark.slow,
]
BATCH = 4
HOW = CaptioningOptions(batch_size=BATCH)


@pytest.fixture(scope="module")
def small_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ray on two cores of this machine, without a dashboard."""
    pytest.importorskip("ray", reason="needs the extra `ray`")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray = cluster._ray()
        ray.init(
            "local",
            num_cpus=2,
            num_gpus=0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            object_store_memory=2**27,
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
        )
        yield
        ray.shutdown()


LEAST = 0.0725  # confidence; some captions of the toy model have it, and others have not


@pytest.fixture
def model(tmp_path: Path) -> Path:
    toys.captioner().save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """23 pictures, one bytes, one in an archive; a broken file, a name that leads nowhere."""
    for index in range(21):
        colour = list(toys.COLOURS)[index % len(toys.COLOURS)]
        toys.draw(tmp_path / "pictures" / f"{index:02}.png", colour, 3 * index)
    (tmp_path / "pictures" / "09x.png").write_bytes(b"no picture")
    member = (tmp_path / "pictures" / "02.png").read_bytes()
    with tarfile.open(tmp_path / "open.tar", "w") as archive:
        archive.add(tmp_path / "pictures" / "03.png", "member.png")
    listed = list(
        list_images([str(tmp_path / "pictures"), "nowhere.png", str(tmp_path / "open.tar")])
    )
    assert isinstance(listed[-1].source, Slice)
    return [*listed, Item("shard.tar/caf\udce9.png", member)]


def plain(models: list[Path], items: list[Item], n_best: int, least: float | None = None) -> str:
    """What `captioner caption --format jsonl` writes."""
    file = io.StringIO()
    captioner = Captioner.load(models, "cpu")
    words = least is not None
    options = toys.options(captioner, batch_size=BATCH, n_best=n_best, beam_size=3, words=words)
    records = caption_files(captioner, items, *options)
    with JsonLinesWriter(file, n_best=n_best, words=words, min_confidence=least) as writer:
        assert all(map(writer.write, records))
    return file.getvalue()


def test_the_same_lines_as_without_ray(small_cluster, model, items, tmp_path, monkeypatch):
    monkeypatch.setattr(crew, "BLOCK_BATCHES", 1)  # six blocks for two workers
    output = tmp_path / "out" / "captions.jsonl"
    heard: list[Record] = []
    totals = caption_with_ray(
        model,
        iter(items),
        output,
        {"beam_size": 3},
        CaptioningOptions(n_best=2, batch_size=BATCH, words=True),
        min_confidence=LEAST,
        concurrency=2,
        tell=heard.append,
    )
    marks = [row.get("confident") for row in map(json.loads, output.open(encoding="utf-8"))]
    unsure = marks.count(False)
    assert 0 < unsure < 23  # or choose another
    failed = [record.file_name for record in heard if record.error]
    assert failed == [items[10].name, "nowhere.png"]
    errors = output.with_name("errors.jsonl")
    counts = {"images": 25, "failed": 2, "fresh": 25, "new_failed": 2, "unsure": unsure}
    assert totals == Totals(errors=errors, **counts)
    assert output.read_text(encoding="utf-8") == plain([model], items, 2, LEAST)
    told = [json.loads(line) for line in errors.read_text(encoding="utf-8").splitlines()]
    assert [(row["path"], row["kind"]) for row in told] == [
        (items[10].name, "not_an_image"),
        ("nowhere.png", "missing"),
    ]
    assert {file.name for file in output.parent.iterdir()} == {
        "captions.jsonl",
        "captions.jsonl.journal",
        "errors.jsonl",
    }


def test_several_models_caption_together_as_without_ray(small_cluster, model, items, tmp_path):
    other = tmp_path / "other"
    toys.captioner(seed=1).save(other)
    output = tmp_path / "captions.jsonl"
    caption_with_ray([model, other], items[:6], output, {"beam_size": 3}, HOW, concurrency=1)
    together = output.read_text(encoding="utf-8")
    assert together == plain([model, other], items[:6], 1) != plain([model], items[:6], 1)
    assert not output.with_name("errors.jsonl").exists()


def test_pictures_without_numbers_are_the_same_lines_too(small_cluster, items, tmp_path):
    broken = toys.captioner()
    broken.decoder.init_hidden.std.zero_()
    broken.save(tmp_path / "broken")
    output = tmp_path / "captions.jsonl"
    totals = caption_with_ray(
        tmp_path / "broken", items[:6], output, {"beam_size": 3}, HOW, concurrency=1
    )
    assert totals.failed == 6
    lines = output.read_text(encoding="utf-8")
    assert lines == plain([tmp_path / "broken"], items[:6], 1)
    assert lines.count(f"model {tmp_path / 'broken'} computes NaN or infinity") == 6


WEAK = """
import torch
at = ""
class Cell(torch.nn.Module):
    def __init__(self, embed, hidden, layers, *, dropout):
        super().__init__()
        self.gru = torch.nn.GRU(embed, hidden, layers, batch_first=True)
    def forward(self, inputs, hidden):
        if inputs.shape[1] == 1:
            raise ValueError("my mistake")
        return self.gru(inputs, hidden)
"""


def test_a_worker_without_a_plug_in_is_one_line(small_cluster, items, tmp_path, monkeypatch):
    """The driver has version 1.0; the workers have none, then 0.9, then one that fails."""
    sites = {}
    for version in ("1.0", "0.9"):
        site = sites[version] = tmp_path / f"site-{version}"
        info = site / f"weak_thing-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: weak-thing\nVersion: {version}\n"
        )
        (info / "entry_points.txt").write_text("[captioner.cells]\nweak = weak_thing:Cell\n")
        (site / "weak_thing.py").write_text(WEAK)
    monkeypatch.syspath_prepend(str(sites["1.0"]))
    toys.captioner(cell="weak").save(tmp_path / "weak")

    def message(folder: Path | None) -> str:
        paths = os.pathsep.join(filter(None, [str(folder or ""), *sys.path[1:]]))
        environment = {"runtime_env": {"env_vars": {"PYTHONPATH": paths}}}
        with pytest.raises(ModelError) as error:
            caption_with_ray(
                *(tmp_path / "weak", items[:6], tmp_path / "captions.jsonl"),
                {"beam_size": 3},
                HOW,
                concurrency=1,
                worker_options=environment,
            )
        return str(error.value)

    advice = "pip install 'weak-thing==1.0' on every machine"
    needs = f"the worker on {platform.node()} needs the cell weak of weak-thing 1.0 and has"
    assert message(None) == f"{needs} no such plug-in: {advice}"
    assert message(sites["0.9"]) == f"{needs} weak-thing 0.9: {advice}"
    assert message(sites["1.0"]) == "plug-in weak of weak-thing 1.0 fails: ValueError: my mistake"


class StoppedError(Exception):
    """As if the process were killed here."""


def test_it_goes_on_where_a_plain_job_stopped_and_past_a_picture_that_kills(
    small_cluster, model, items, tmp_path
):
    output, whole = tmp_path / "out" / "captions.jsonl", tmp_path / "whole.jsonl"
    captioner = Captioner.load(model, "cpu")
    options = toys.options(captioner, batch_size=BATCH, beam_size=3)
    name = fingerprint(model)
    caption_to_file(lambda: captioner, [*items, *items[:1] * 3], whole, *options, model=name)

    def stop(record: Record) -> None:
        if record.file_name == items[9].name:
            raise StoppedError

    with pytest.raises(StoppedError):
        caption_to_file(lambda: captioner, items, output, *options, model=name, tell=stop)
    heard: list[Record] = []
    given = (output, {"beam_size": 3}, HOW)
    items += [items[0]] * 3  # the killer is alone in its batch
    listed = [*items, Item("killer.png", Deadly())]
    totals = caption_with_ray(model, listed, *given, concurrency=1, tell=heard.append)
    known = [item.name for item in items[:12] if item.name != items[10].name]
    assert not {record.file_name for record in heard} & set(known)  # nothing twice
    assert (totals.images, totals.failed, totals.fresh) == (29, 3, 29 - 3 - 12)
    *lines, last = output.read_text(encoding="utf-8").splitlines(keepends=True)
    assert "".join(lines) == whole.read_text(encoding="utf-8")
    assert json.loads(last)["error"] == str(DIED)
    assert "worker_died" in output.with_name("errors.jsonl").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match=r"different settings .beam_size was 3, is 2"):
        caption_with_ray(model, items, output, {"beam_size": 2}, HOW, concurrency=1)


def test_features_of_another_program_are_the_same_lines_too(small_cluster, tmp_path):
    eyes = GivenFeatures(6)
    toys.captioner(eyes).save(tmp_path / "model")
    vectors = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
    vectors[4] = np.nan
    np.savez(tmp_path / "f.npz", **{f"i{n}": row for n, row in enumerate(vectors)})
    items = list(list_images(str(tmp_path / "f.npz")))
    output = tmp_path / "captions.jsonl"
    totals = caption_with_ray(
        tmp_path / "model", items, output, {"beam_size": 3}, HOW, concurrency=1
    )
    assert (totals.images, totals.failed) == (9, 1)
    assert output.read_text(encoding="utf-8") == plain([tmp_path / "model"], items, 1)


def test_parquet_has_the_same_rows_and_uris_are_read(
    small_cluster, model, items, tmp_path, monkeypatch
):
    from pyarrow.parquet import read_table

    monkeypatch.setattr(crew, "BLOCK_BATCHES", 1)
    output = tmp_path / "captions.parquet"
    uris = [item.source.as_uri() for item in items[:11] if isinstance(item.source, Path)]
    missing = tmp_path / "missing file.png"
    listed = list(list_images([*uris, missing.as_uri(), "nobody://reads/this.png"]))
    totals = caption_with_ray(
        model, listed, output, {"beam_size": 3}, HOW, format="parquet", concurrency=1
    )
    assert (totals.images, totals.captioned, totals.failed) == (13, 10, 3)
    rows = read_table(output).to_pylist()
    assert [row["file_name"] for row in rows] == [
        *(item.name for item in items[:11] if isinstance(item.source, Path)),
        str(missing),
        "nobody://reads/this.png",
    ]
    assert "No such file" in rows[-2]["error"]
    assert "read are s3" in rows[-1]["error"]
    wanted = [json.loads(line) for line in plain([model], items[:11], 1).splitlines()]
    for row, local in zip(rows, wanted, strict=False):
        assert row == {"error": None} | local | {"file_name": row["file_name"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_workers_read_a_store_as_one_process_reads_the_disk(
    small_cluster, model, items, tmp_path, monkeypatch
):
    pytest.importorskip("s3fs", reason="needs the extra `remote`")
    pytest.importorskip("moto", reason="needs moto")
    storage = stores.benchmark()
    for name, value in storage.KEYS.items():
        monkeypatch.setenv(name, value)
    sources = ("pictures/", "open.tar")
    local = [item for source in sources for item in list_images(f"{tmp_path}/{source}")]
    with storage.object_storage() as (behind, proxy, traffic):
        storage.upload(tmp_path, behind)
        traffic.every = 9
        keys = {**storage.KEYS, "AWS_ENDPOINT_URL": proxy}
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy)
        object_store._file_system.cache_clear()
        caption_with_ray(
            model,
            [item for source in sources for item in list_images(f"s3://pictures/{source}")],
            tmp_path / "captions.jsonl",
            {"beam_size": 3},
            HOW,
            concurrency=1,
            worker_options={"runtime_env": {"env_vars": keys}},
        )
        object_store._file_system.cache_clear()
    rows = (tmp_path / "captions.jsonl").read_text(encoding="utf-8")
    assert rows.count("\n") == 23 and traffic.faults.total() > 1
    assert rows.replace("s3://pictures", str(tmp_path)) == plain([model], local, 1)


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_the_command_line_writes_the_wording(small_cluster, model, items, tmp_path, format):
    (tmp_path / "fixes.tsv").write_text("square\tbox\nred\truby\n")
    output = tmp_path / f"captions.{format}"
    pictures = [item.name for item in items[:4]]
    words = (
        "--map",
        str(tmp_path / "fixes.tsv"),
        "--style",
        "sentence",
        "--template",
        "{caption} x",
    )
    wanted = ("--n-best", "2", "--beam-size", "3", "--batch-size", str(BATCH))
    given = ["caption", *pictures, "--model", str(model), "--engine", "ray", *words, *wanted]
    done = CliRunner().invoke(main, [*given, "--format", format, "--output", str(output)])
    assert done.exit_code == 0, done.output
    rows = [*map(json.loads, plain([model], items[:4], 2).splitlines())]
    wording = Wording("sentence", {"square": "box", "red": "ruby"}, "{caption} x")
    for row in rows:
        assert row["caption"] != wording(row["caption"])
        for each in (row, *row["n_best"]):
            each["caption"] = wording(each["caption"])
    if format == "jsonl":
        lines = output.read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == rows
    else:
        table = pytest.importorskip("pyarrow.parquet").read_table(output).to_pylist()
        assert [row["caption"] for row in table] == [row["caption"] for row in rows]
        assert [[c["caption"] for c in row["n_best"]] for row in table] == [
            [c["caption"] for c in row["n_best"]] for row in rows
        ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--template", "sks"), "--template: must contain {caption}"),
        (("--map", "nowhere.tsv"), "nowhere.tsv: cannot be read: No such file"),
    ],
)
def test_a_bad_wording_is_said_before_the_cluster_is_asked(
    model, items, tmp_path, monkeypatch, words, message
):
    monkeypatch.setattr(cluster, "_connected", None)
    given = ["caption", items[0].name, "--model", str(model), "--engine", "ray", *words]
    done = CliRunner().invoke(main, [*given, "--output", str(tmp_path / "x.jsonl")])
    assert done.exit_code in (1, 2)
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_no_gpu_is_said_and_not_waited_for(small_cluster, model, tmp_path):
    with pytest.raises(ConfigError, match="Ray finds 0 on this machine"):
        caption_with_ray(model, (), tmp_path / "captions.jsonl", num_gpus=1)


def test_nothing_to_caption_is_an_empty_file(small_cluster, model, tmp_path):
    assert caption_with_ray(model, (), tmp_path / "captions.jsonl") == Totals(0, 0, 0)
    assert (tmp_path / "captions.jsonl").read_bytes() == b""


def test_mistakes_are_found_before_the_cluster_is(model, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="needs the extra `ray`")
    monkeypatch.setattr(cluster, "_connected", None)
    for wrong in (
        {"overrides": {"beam_size": 0}},
        {"how": CaptioningOptions(n_best=0)},
        {"how": CaptioningOptions(batch_size=0)},
        {"concurrency": 0},
        {"concurrency": (3, 2)},
    ):
        with pytest.raises(ConfigError):
            caption_with_ray(model, (), tmp_path / "captions.jsonl", **wrong)
    assert not (tmp_path / "captions.jsonl").exists()


def test_without_ray_it_says_what_to_install(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"--engine ray needs pip install 'captioner\[ray\]'"):
        caption_with_ray(model, (), tmp_path / "captions.jsonl")


def test_a_pipe_behind_an_address_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a pipe.png")
    [item] = list_images((tmp_path / "a pipe.png").as_uri())
    assert isinstance(item.source, ImageError) and item.source.kind == "unreadable"
