"""Pictures at addresses: a real S3 server and web servers on this machine, with faults."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import stores
from click.testing import CliRunner

from captioner.captioning import part_folders, parts, remote_output
from captioner.captioning.job import locked
from captioner.captioning.run_state import SILENCE
from captioner.captioning.sources import list_images
from captioner.captioning.sources.tables import remote_row
from captioner.captioning.status import job_status
from captioner.cli import main
from captioner.errors import ConfigError, ImageError
from captioner.images.content import Content
from captioner.images.remote_content import RemoteFile
from captioner.system import object_store

import toys

pytest.importorskip("s3fs", reason="needs the extra `remote`")
pytest.importorskip("moto", reason="needs moto")

# botocore, moto and aiohttp warn of their own insides.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
BUCKET = "s3://pictures"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 pictures in folders, two shards, two compressed shards, a ZIP archive, tables."""
    top = tmp_path_factory.mktemp("pictures")
    for index in range(12):
        colour = list(toys.COLOURS)[index % len(toys.COLOURS)]
        toys.draw(top / "folders" / f"{index % 3}" / f"{index:02}.png", colour, 5 * index)
    names = sorted((top / "folders").rglob("*.png"))
    for shard in range(2):
        for mode, end in (("w", ""), ("w:gz", ".gz")):
            with tarfile.open(top / f"{shard}.tar{end}", mode) as archive:
                for path in names[shard::2]:
                    archive.add(path, path.name)
    for kind, name in ((zipfile.ZIP_DEFLATED, "all.zip"), (zipfile.ZIP_STORED, "stored.zip")):
        with zipfile.ZipFile(top / name, "w", kind) as archive:
            for path in names:
                archive.write(path, path.name)
    rows = [path.relative_to(top).as_posix() for path in names]
    (top / "table.csv").write_text("file_name\n" + "".join(f"{row}\n" for row in rows))
    lines = [json.dumps({"file_name": row, "image_id": f"n{row[-6:-4]}"}) for row in rows]
    (top / "table.jsonl").write_text("\n".join(lines))
    (top / "large").mkdir()
    with tarfile.open(top / "large" / "large.tar", "w") as archive:
        for name in "abcde":
            member = tarfile.TarInfo(f"{name}.png")
            member.size = 40_000
            archive.addfile(member, io.BytesIO(os.urandom(member.size)))
    (top / "folders" / "0" / "notes.txt").write_text("no picture")
    (top / "folders" / "0" / "broken.png").write_bytes(b"no picture")
    return top


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[tuple[str, Any]]:
    """The address of the proxy before an S3 server that holds the folder, and its traffic."""
    storage = stores.benchmark()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in storage.KEYS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with storage.object_storage() as (behind, proxy, traffic):
            storage.upload(folder, behind)
            patch.setenv("AWS_ENDPOINT_URL", proxy)
            patch.setattr(object_store, "ATTEMPTS", 1)
            object_store._file_system.cache_clear()
            yield proxy, traffic
            object_store._file_system.cache_clear()


@pytest.fixture
def traffic(server: tuple[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(object_store, "PAUSE", 0.01)
    monkeypatch.setattr(stores.benchmark(), "SLOW", 0.02)
    server[1].every, server[1].kinds = 0, stores.benchmark().FAULTS
    server[1].clear()
    return server[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model"
    toys.captioner().save(path)
    return path


def contents(source: str, **options: Any) -> list[tuple[str, object, str]]:
    """What is listed, and read: the name, the bytes or the message, and the id."""
    found = []
    for item in list_images(source, **options):
        try:
            if isinstance(item.source, ImageError):
                raise item.source
            is_read = isinstance(item.source, bytes)
            content = item.source if is_read else item.source.read_bytes()  # type: ignore[union-attr]
        except ImageError as error:
            content = f"{error.kind}: {error}"
        found.append((item.name, content, item.image_id))
    return found


SOURCES = (
    "folders/0",
    "folders/",
    "folders/*/*.png",
    "folders/**/*.png",
    "folders/**",
    "folders/[01]/0?.png",
    "folders/*",
    "0.tar",
    "*.tar",
    "*.tar.gz",
    "all.zip",
    "stored.zip",
    "table.csv",
    "table.jsonl",
    "folders/1/01.png",
)


@pytest.mark.parametrize("every", [0, 3])
@pytest.mark.parametrize("source", SOURCES)
def test_a_store_holds_what_the_disk_holds(folder, traffic, source, every):
    traffic.every = every
    recursive = source in ("folders/", "folders/**")
    local = contents(f"{folder}/{source}", recursive=recursive)
    remote = contents(f"{BUCKET}/{source}", recursive=recursive)
    assert [(name.replace(str(folder), BUCKET), *rest) for name, *rest in local] == remote
    assert len(remote) > 0 and all(name.startswith(BUCKET) for name, *_ in remote)
    assert bool(traffic.faults) == bool(every and traffic.requests >= every)


def test_the_command_writes_the_same_bytes(folder, traffic, model, tmp_path):
    traffic.every = 4
    for number, source in enumerate(("folders", "*.tar", "0.tar.gz", "all.zip", "table.jsonl")):
        rows = []
        for top in (str(folder), BUCKET):
            output = tmp_path / f"{number}{len(rows)}.jsonl"
            given = ["caption", f"{top}/{source}", "--model", str(model), "--output", str(output)]
            done = CliRunner().invoke(main, [*given, "--recursive", "--batch-size", "4"])
            assert done.exit_code == (1 if source == "folders" else 0), done.output
            rows.append(output.read_text().replace(f'"{top}/', '"'))
        assert rows[0] == rows[1] and rows[0].count("\n") >= 6
    assert traffic.faults.keys() == {"500", "slow", "cut"}


def test_a_compressed_archive_is_read_once(folder, traffic):
    assert len(contents(f"{BUCKET}/0.tar.gz")) == 6
    parts = [part for method, _, part in traffic.seen if method == "GET"]
    assert traffic.received == (folder / "0.tar.gz").stat().st_size
    assert len(parts) == len(set(parts))


def test_a_process_reads_headers_and_its_own_members_only(folder, traffic, monkeypatch):
    monkeypatch.setattr("captioner.captioning.sources.tar.HEADERS", 512)
    items = list(list_images(f"{BUCKET}/large/large.tar"))
    assert traffic.received < (folder / "large/large.tar").stat().st_size / 10
    traffic.clear()
    assert isinstance(items[2].source, Content)
    member = items[2].source.read_bytes()
    assert (traffic.requests, traffic.received) == (1, len(member)) == (1, 40_000)


def test_a_table_may_name_addresses_and_nothing_outside_its_folder(traffic, folder, tmp_path):
    table = tmp_path / "list.csv"
    names = ("folders/1/01.png", "nowhere.png", "*.tar", "")
    table.write_text("file_name\n" + "".join(f"{BUCKET}/{name}\n" for name in names))
    found = contents(str(table))
    assert found[0][1] == (folder / "folders/1/01.png").read_bytes()
    assert [content for _, content, _ in found[1:3]] == ["missing: no such file"] * 2
    assert str(found[3][1]).startswith(("missing", "unreadable"))
    assert remote_row("s3://b/f", "t:1", "a.png").source == RemoteFile("s3://b/f/a.png")
    for outside in ("../a.png", "/etc/passwd", "x/../../a.png"):
        assert isinstance(remote_row("s3://b/f", "t:1", outside).source, ImageError)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.png", "missing: no such file"),
        ("nowhere.tar", "missing: no such file"),
        ("nowhere/", "missing: no image in this folder"),
        ("no*.png", "missing: no file matches this pattern"),
        ("folders", "missing: no image in this folder (--recursive searches subfolders)"),
        ("features.npy", "missing: no such file"),
    ],
)
def test_what_is_not_there_is_one_failure(traffic, source, message):
    [(_, content, _)] = contents(f"{BUCKET}/{source}")
    assert str(content).startswith(message) or str(content) == "missing: no such file"


def test_a_store_that_never_answers_costs_one_line_and_few_tries(traffic):
    traffic.every, traffic.kinds = 1, ("500",)
    [(name, content, _)] = contents(f"{BUCKET}/folders/")
    assert name == f"{BUCKET}/folders" and str(content).startswith("unreadable: cannot be read")
    assert object_store.TRIES <= traffic.requests <= 3 * object_store.TRIES


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of unfinished outputs; without it, this is another machine."""
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def stored(name: str) -> bytes:
    return object_store.read(f"{BUCKET}/{name}")


def test_an_output_is_put_whole_and_goes_on_on_another_machine(
    folder, traffic, model, tmp_path, cache
):
    traffic.every = 4
    whole = tmp_path / "whole.jsonl"
    options = ("--recursive", "--model", str(model), "--batch-size", "2")
    pictures = f"{folder}/folders"
    CliRunner().invoke(main, ["caption", pictures, *options, "--output", str(whole)])
    given = ["caption", pictures, *options, "--output", f"{BUCKET}/out/captions.jsonl"]

    done = CliRunner().invoke(main, [*given, "--on-error", "fail"])
    assert done.exit_code == 1 and "--on-error fail" in done.stderr
    with pytest.raises(object_store.UnreachableError, match="no such file"):
        stored("out/captions.jsonl")
    assert stored("out/captions.jsonl.journal").startswith(b"SQLite")

    shutil.rmtree(cache)
    done = CliRunner().invoke(main, given)
    assert "1 journal(s) fetched" in done.stderr and "in earlier runs" in done.stderr
    assert done.exit_code == 1 and "13 image(s)" in done.stderr and "1 failed" in done.stderr
    assert stored("out/captions.jsonl") == whole.read_bytes()
    assert json.loads(stored("out/captions.jsonl.errors.jsonl"))["kind"] == "not_an_image"

    status = CliRunner().invoke(main, ["status", f"{BUCKET}/out/captions.jsonl"])
    assert "13" in status.output and status.exit_code == 0


def test_an_output_is_put_whatever_the_clock_of_its_disk_says(traffic, cache):
    address = f"{BUCKET}/slow-clock.txt"
    local = remote_output.local_output(address)
    with remote_output.kept(address):
        local.write_text("old")
        os.utime(local, (1, 1))
    assert stored("slow-clock.txt") == b"old"


def test_no_foreign_object_is_replaced(folder, traffic, model, cache):
    given = ["caption", str(folder / "0.tar"), "--model", str(model)]
    for words, message in (((), "already exists"), (("--overwrite",), "is not a")):
        done = CliRunner().invoke(main, [*given, "--output", f"{BUCKET}/table.jsonl", *words])
        assert done.exit_code == 2 and done.stderr.count("\n") == 1
        assert message in done.stderr and f"{BUCKET}/table.jsonl" in done.stderr
    assert stored("table.jsonl") == (folder / "table.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("https://user:hunter2secret@host/captions.jsonl", "cannot put a whole object in one step"),
        ("s3://bucket", "names no file"),
        ("s3://bucket/", "names no folder in a bucket"),
        ("https://user:hunter2secret@host/out/", "cannot put a whole object in one step"),
    ],
)
def test_an_output_that_cannot_be_put_is_refused(folder, model, cache, output, message):
    given = ["caption", str(folder / "0.tar"), "--model", str(model), "--output", output]
    done = CliRunner().invoke(main, given)
    assert done.exit_code == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert "hunter2secret" not in done.stderr and not cache.exists()


def test_an_output_that_is_not_put_stays_and_is_put_by_the_same_command(
    folder, traffic, model, cache, monkeypatch
):
    put = object_store.put
    address = f"{BUCKET}/later/captions.jsonl"
    given = ["caption", str(folder / "0.tar"), "--model", str(model), "--output", address]

    def refused(local: Path, address: str) -> None:
        raise object_store.UnreachableError("the store is away")

    monkeypatch.setattr("captioner.captioning.remote_output.put", refused)
    done = CliRunner().invoke(main, given)
    assert done.exit_code == 1 and f"{address}: not put: the store is away" in done.stderr
    monkeypatch.setattr("captioner.captioning.remote_output.put", put)
    done = CliRunner().invoke(main, given)
    assert done.exit_code == 0 and "6 in earlier runs" in done.stderr
    assert stored("later/captions.jsonl").count(b"\n") == 6


@pytest.fixture
def parts_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_IMAGES", 4)


def in_parts(folder: Path, model: Path, output: str, *words: str) -> Any:
    """Caption 13 pictures, one broken, into parts of 4 images, or into a file."""
    given = ["caption", f"{folder}/folders", "--recursive", "--model", str(model), *words]
    return CliRunner().invoke(main, [*given, "--batch-size", "2", "--output", output])


def merged(address: str, *output: str) -> None:
    done = CliRunner().invoke(main, ["merge", address, *output])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_parts_at_an_address_merge_to_the_bytes_of_a_plain_job(
    folder, traffic, model, tmp_path, cache, parts_of_four, format
):
    pytest.importorskip("pyarrow" if format == "parquet" else "json")
    traffic.every = 4
    address, ending = f"{BUCKET}/{format}/out/", ("--format", format)
    whole = tmp_path / f"whole.{format}"
    in_parts(folder, model, str(whole), *ending)
    done = in_parts(folder, model, address, *ending)
    assert done.exit_code == 1 and "1 failed, " in done.stderr
    assert f"in {address}; failures in {address}errors.jsonl" in done.stderr
    numbers = {f"part-{number:05}.{end}" for number in range(4) for end in ("json", format)}
    names = {entry.address.rpartition("/")[2] for entry in object_store.listing(address)}
    assert names == {*numbers, ".captioner.json", "parts.json", "errors.jsonl"}
    assert json.loads(stored(f"{format}/out/errors.jsonl"))["kind"] == "not_an_image"

    shutil.rmtree(cache)  # another machine, without a slash and with one
    merged(address[:-1], "--output", str(tmp_path / "all"))
    assert (tmp_path / "all").read_bytes() == whole.read_bytes()
    merged(address)
    assert stored(f"{format}/out.{format}") == whole.read_bytes()
    assert json.loads(stored(f"{format}/out.{format}.errors.jsonl"))["path"].endswith("broken.png")
    status = CliRunner().invoke(main, ["status", address])
    assert f"{address}: finished, 13 of 13 image(s) done, 1 failed" in status.output
    assert traffic.faults.keys() == {"500", "slow", "cut"}


def test_only_missing_and_damaged_parts_are_put_again(
    folder, traffic, model, tmp_path, cache, parts_of_four
):
    address = f"{BUCKET}/again/"
    in_parts(folder, model, address)
    merged(address, "--output", str(tmp_path / "before"))
    (tmp_path / "torn").write_bytes(b"{")
    for torn in (False, True):
        if torn:
            object_store.put(tmp_path / "torn", f"{address}part-00002.jsonl")
        else:
            object_store.delete(f"{address}part-00002.json")
        done = CliRunner().invoke(main, ["merge", address, "--output", str(tmp_path / "no")])
        assert done.exit_code == 1 and "the part of image 8 is missing or damaged" in done.stderr
        assert not (tmp_path / "no").exists()
        traffic.clear()
        assert "(9 in earlier runs)" in in_parts(folder, model, address).stderr
        put = {path.partition("?")[0] for method, path, _ in traffic.seen if method == "PUT"}
        ends = ("json", "jsonl")
        assert {name.rpartition("/")[2] for name in put} - {"parts.json", "errors.jsonl"} == {
            f"part-00002.{end}" for end in ends
        }
    merged(address, "--output", str(tmp_path / "after"))
    assert (tmp_path / "after").read_bytes() == (tmp_path / "before").read_bytes()


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


def test_killed_before_and_after_each_put_the_same_command_goes_on(
    folder, traffic, model, tmp_path, cache, parts_of_four, monkeypatch
):
    whole = tmp_path / "whole.jsonl"
    in_parts(folder, model, str(whole))
    put, deaths = object_store.put, 0

    def deadly(after: int, *, is_put: bool) -> Any:
        """Puts that kill at one of them, before or after it is put; none comes after."""
        puts = iter(range(after + 1))

        def one(local: Path, address: str) -> None:
            nonlocal deaths
            number = next(puts, None)
            if number is None:
                raise object_store.UnreachableError("dead")
            if number < after or is_put:
                put(local, address)
            if number == after:
                deaths += 1
                raise Killed

        return one

    # A mark, a note, four parts with their manifests, a note, the list of failures.
    for after, is_put in product(range(12), (False, True)):
        address = f"{BUCKET}/killed/{after}{is_put}/"
        monkeypatch.setattr(part_folders, "put", deadly(after, is_put=is_put))
        with pytest.raises(Killed):
            in_parts(folder, model, address)
        shutil.rmtree(cache, ignore_errors=True)
        monkeypatch.setattr(part_folders, "put", put)
        assert "13 image(s)" in in_parts(folder, model, address).stderr
        merged(address, "--output", str(tmp_path / "all"))
        assert (tmp_path / "all").read_bytes() == whole.read_bytes()
    assert deaths == 24


def test_a_foreign_folder_of_a_store_is_left_alone(folder, traffic, model, cache):
    for words in ((), ("--overwrite",)):
        done = in_parts(folder, model, f"{BUCKET}/folders/1/", *words)
        assert done.exit_code == 2 and "not marked as captioner's parts folder" in done.stderr
    assert stored("folders/1/01.png") == (folder / "folders/1/01.png").read_bytes()
    assert all(method in ("GET", "HEAD") for method, *_ in traffic.seen)
    for verb in ("status", "merge"):
        done = CliRunner().invoke(main, [verb, f"{BUCKET}/folders/1/"])
        assert done.exit_code == 1 and done.stderr.count("\n") == 1


def test_overwrite_discards_the_parts_of_another_job(folder, traffic, model, cache, parts_of_four):
    address = f"{BUCKET}/two/"
    in_parts(folder, model, address)
    done = in_parts(folder, model, address, "--beam-size", "2")
    assert done.exit_code == 2 and f"{address}: this job was started with different" in done.stderr
    done = in_parts(folder, model, address, "--beam-size", "2", "--overwrite")
    assert "13 image(s), 12 captioned" in done.stderr
    with locked(part_folders.folder_at(address).lock):
        done = in_parts(folder, model, address, "--beam-size", "2")
        assert f"{address}: in use by another process" in done.stderr


def test_a_store_that_is_away_is_said_in_one_line(folder, traffic, model, cache, parts_of_four):
    address = f"{BUCKET}/away/"
    in_parts(folder, model, address)
    traffic.every, traffic.kinds = 1, ("500",)
    for done in (
        in_parts(folder, model, address),
        CliRunner().invoke(main, ["status", address]),
        CliRunner().invoke(main, ["merge", address]),
    ):
        assert done.exit_code == 1 and done.stderr.count("\n") == 1
        assert f"{BUCKET}/away/" in done.stderr and "Traceback" not in done.stderr


def test_a_job_of_another_machine_runs_while_it_gives_signs(
    folder, traffic, model, tmp_path, cache, parts_of_four
):
    address = f"{BUCKET}/elsewhere/"
    in_parts(folder, model, address)
    object_store.delete(f"{address}part-00003.json")
    noted = json.loads(stored("elsewhere/parts.json"))
    for silence, state in ((5, "running"), (SILENCE + 5, "stopped")):
        changes = {"host": "other", "process": 1, "updated": time.time() - silence}
        text = json.dumps(noted | {"images": None, "run": noted["run"] | changes})
        (tmp_path / "parts.json").write_text(text)
        object_store.put(tmp_path / "parts.json", f"{address}parts.json")
        assert job_status(address).state == state
        told = in_parts(folder, model, address).stderr
        assert ("a job on other wrote here" in told) == (state == "running")
        assert job_status(address).state == "finished"


SECRETS = ("hunter2secret", "AKIAEXAMPLEEXAMPLE", "c2lnbmF0dXJlc2lnbmF0dXJl", "sasSignature123")
SIGNED = (
    "http://user:hunter2secret@127.0.0.1:9/a.jpg",
    "http://127.0.0.1:9/a.jpg?X-Amz-Credential=AKIAEXAMPLEEXAMPLE&X-Amz-Signature=c2lnbmF0dXJlc2lnbmF0dXJl",
    "http://127.0.0.1:9/a.tar?sv=2024&sig=sasSignature123",
    "http://127.0.0.1:9/folder/?token=hunter2secret",
    "http://127.0.0.1:9/x/*.jpg?token=hunter2secret",
    "nobody://user:hunter2secret@host/a.jpg",
)


def test_no_secret_reaches_outputs_journals_or_messages(model, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(object_store, "PAUSE", 0.001)
    output = tmp_path / "captions.jsonl"
    table = tmp_path / "list.csv"
    table.write_text("file_name\n" + "".join(f"{name}\n" for name in SIGNED))
    given = ["caption", *SIGNED, str(table), "--model", str(model), "--output", str(output)]
    done = CliRunner().invoke(main, given)
    assert done.exit_code == 1 and output.read_text().count("\n") >= len(SIGNED)
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path != table)
    told = done.output + done.stderr + "".join(capfd.readouterr())
    for secret in SECRETS:
        assert secret not in told and secret.encode() not in written
    assert "127.0.0.1:9/a.jpg?X-Amz-Credential=...&X-Amz-Signature=..." in told


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(object_store, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"s3://b/a.jpg: needs pip install 'captioner\[remote\]'"):
        list(list_images("s3://b/a.jpg"))


@pytest.mark.parametrize("scheme", ["gs", "az", "hf"])
def test_the_other_schemes_take_the_same_road(monkeypatch, scheme):
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    asked: Counter[str] = Counter()

    class Store(MemoryFileSystem):
        protocol = scheme

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return path.removeprefix(f"{scheme}://").strip("/")

    files, content = Store(), b"content"
    monkeypatch.setattr(fsspec, "filesystem", lambda name, **_: asked.update([name]) or files)
    monkeypatch.setattr(object_store, "find_spec", lambda name: True)
    monkeypatch.setattr(object_store, "import_module", lambda name: None)
    object_store._file_system.cache_clear()
    monkeypatch.setattr(files, "info", lambda path: _info(path, content))
    monkeypatch.setattr(files, "cat_file", lambda path, **_: content)
    [(name, found, _)] = contents(f"{scheme}://box/a.png")
    assert (name, found) == (f"{scheme}://box/a.png", content) and asked == {scheme: 1}
    object_store._file_system.cache_clear()


def _info(path: str, content: bytes) -> dict[str, object]:
    return {"name": path, "type": "file", "size": len(content)}


class _Handler(SimpleHTTPRequestHandler):
    ranges = False

    def do_GET(self) -> None:
        part = self.headers.get("Range", "")
        path = Path(self.translate_path(self.path))
        if not (self.ranges and part and path.is_file()):
            super().do_GET()
            return
        start, end = part.removeprefix("bytes=").split("-")
        whole = path.read_bytes()
        content = whole[int(start) : int(end or len(whole)) + 1]
        self.send_response(206)
        self.send_header(
            "Content-Range", f"bytes {start}-{int(start) + len(content) - 1}/{len(whole)}"
        )
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def end_headers(self) -> None:
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(params=[True, False], ids=["ranges", "no-ranges"])
def web(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[str, bool]]:
    handler = type("Handler", (_Handler,), {"ranges": request.param})
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *given: handler(*given, directory=os.fspath(folder))
    )
    Thread(target=server.serve_forever, daemon=True).start()
    object_store._file_system.cache_clear()
    yield f"http://127.0.0.1:{server.server_port}", request.param
    server.shutdown()
    server.server_close()
    object_store._file_system.cache_clear()


def test_a_web_server_holds_what_the_disk_holds(web, folder, monkeypatch):
    monkeypatch.setattr(object_store, "PAUSE", 0.01)
    address, ranges = web
    sources = ["0.tar", "0.tar.gz", "all.zip", "table.csv", "folders/", "folders/1/01.png"]
    for source in [*sources, "folders/1/*.png"]:
        recursive = source == "folders/"
        local = contents(f"{folder}/{source}", recursive=recursive)
        remote = contents(f"{address}/{source}", recursive=recursive)
        if source == "all.zip" and not ranges:
            [(_, content, _)] = remote
            assert "needs a server that gives parts of a file" in str(content)
            continue
        assert [(name.replace(str(folder), address), *rest) for name, *rest in local] == remote
    [(_, content, _)] = contents(f"{address}/nowhere.png")
    assert content == "missing: no such file"
