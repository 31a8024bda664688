"""Captions beside images: texts of the user stay, nothing comes twice, a kill changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import assume, given
from hypothesis import strategies as st

from captioner.captioning import sidecars, xmp
from captioner.captioning.records import Record, digest_of
from captioner.captioning.sidecar_files import FORMS, UnusableError, joined
from captioner.captioning.sidecar_journal import JOURNAL
from captioner.captioning.sidecars import EXISTING, Sidecars
from captioner.captioning.sources import Item
from captioner.captioning.wording import Wording
from captioner.cli import main
from captioner.errors import ImageError
from captioner.text import Caption

import toys

LINE = st.text(st.characters(exclude_categories=["C"]), max_size=8)
TEXT = st.lists(LINE | st.sampled_from(["my notes", "a dog", "1girl, solo,", "\ufeffbom", "end."]))
USER = TEXT.map("\n".join)
CAPTIONS = st.sampled_from(["a dog", "a dog runs", ", a dog", "", "élan (s)", "*", "a"])
JOINS = st.sampled_from(["append", "prepend"])


def caption_all(folder: Path, captions: dict[str, str], **options: Any) -> tuple[Sidecars, list]:
    """Run a job over the images of a folder, as `captioner caption` does."""
    wording = options.pop("wording", Wording())
    texts = Sidecars(wording=wording.key, **options)
    images = sorted(folder.glob("*.jpg"))
    said = []
    for item in texts.missing([Item(str(path), path) for path in images]):
        name = Path(item.name).name
        if isinstance(item.source, ImageError):
            said.append((name, str(item.source)))
            continue
        best = Caption(captions[name], -1.0, -1.0, True)
        digest = digest_of(Path(item.name).read_bytes())
        record = Record(item.name, (best,), digest=digest).worded(wording)
        said.append((name, texts.write(record)))
    return texts, said


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != JOURNAL}


@given(CAPTIONS, USER, JOINS)
def test_joining_twice_is_joining_once(caption: str, user: str, existing: str) -> None:
    for form in FORMS:
        once = joined(caption, (user,), existing, form)
        assert joined(caption, once, existing, form) == once
        assert user.removeprefix("\ufeff").strip() in once[0]
        assert caption.strip() in once[0]


@pytest.mark.parametrize(
    ("user", "existing", "expected"),
    [
        ("my notes\n", "append", "my notes, a dog\n"),
        ("my notes\n", "prepend", "a dog, my notes\n"),
        ("My notes.", "append", "My notes. a dog\n"),
        ("1girl, solo, ", "append", "1girl, solo, a dog\n"),
        (", tail", "prepend", "a dog, tail\n"),
        ("one\r\ntwo\r\n", "append", "one\r\ntwo, a dog\n"),
        ("\ufeffnotes", "prepend", "\ufeffa dog, notes\n"),
        ("it is a dog!", "append", "it is a dog!"),
        ("a doghouse", "append", "a doghouse, a dog\n"),
        ("\n", "append", "a dog\n"),
    ],
)
def test_captions_are_joined_as_people_join_texts(user: str, existing: str, expected: str) -> None:
    assert joined("a dog", (user,), existing, "txt") == (expected,)


def test_a_text_that_is_not_utf_8_is_not_joined() -> None:
    with pytest.raises(UnusableError, match="not UTF-8"):
        joined("a dog", ("caf\udce9",), "append", "txt")


JOBS = st.fixed_dictionaries(
    {
        "form": st.sampled_from(FORMS),
        "existing": st.sampled_from(EXISTING),
        "wording": st.sampled_from(
            [Wording(), Wording("sentence"), Wording(template="sks style, {caption}")]
        ),
    }
)


def fill(folder: Path, users: list[str], form: str) -> dict[str, str]:
    captions = {}
    for number, user in enumerate(users):
        (folder / f"{number}.jpg").write_bytes(f"picture {number}".encode())
        captions[f"{number}.jpg"] = ["a dog runs", "a cat", ""][number % 3]
        place = folder / f"{number}.{form}"
        if form == "xmp" and user:
            place.write_bytes(xmp.with_texts(xmp.EMPTY, (user, "")))
        elif user:
            place.write_bytes(user.encode())
    return captions


@pytest.fixture(autouse=True)
def fast_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk."""
    monkeypatch.setattr("captioner.system.files._to_disk", lambda path: None)


@given(JOBS, st.lists(USER, min_size=1, max_size=3), st.integers(0, 5), st.booleans())
def test_a_killed_job_and_a_second_run_change_nothing(
    job: dict[str, Any], users: list[str], kill_at: int, before_note: bool
) -> None:
    """Kill a job at any write, before or after the journal has the text, and run it again."""
    assume(not any("\ufeff" in user for user in users) or job["form"] != "xmp")
    with TemporaryDirectory() as first, TemporaryDirectory() as second:
        whole, killed = Path(first), Path(second)
        captions = fill(whole, users, job["form"])
        fill(killed, users, job["form"])
        caption_all(whole, captions, **job)
        result = files(whole)
        with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
            calls = iter(range(10))
            owner, name = (
                (sidecars.SidecarJournal, "note") if before_note else (sidecars, "write_texts")
            )
            patch.setattr(owner, name, dying(getattr(owner, name), calls, kill_at))
            caption_all(killed, captions, **job)
        caption_all(killed, captions, **job)
        assert files(killed) == result
        texts, said = caption_all(whole, captions, **job)
        assert (said, files(whole)) == ([], result)
        assert texts.skipped + len(texts.kept) == len(users)
        for number, user in enumerate(users):
            content = result[f"{number}.{job['form']}"]
            if job["form"] != "xmp" and user.strip() and job["existing"] == "skip":
                assert content == user.encode()
            if job["form"] != "xmp" and job["existing"] in ("append", "prepend"):
                assert user.removeprefix("\ufeff").strip() in content.decode()


def dying(call: Callable[..., None], calls: Iterator[int], at: int) -> Callable[..., None]:
    def run(*args: Any) -> None:
        if next(calls) == at:
            raise KeyboardInterrupt
        call(*args)

    return run


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    (tmp_path / "a.jpg").write_bytes(b"picture")
    (tmp_path / "a.txt").write_text("my notes\n")
    return tmp_path / "a.txt"


def test_the_caption_beside_a_users_text_can_change_place_and_go(notes: Path) -> None:
    def run(existing: str, caption: str = "a dog") -> str:
        caption_all(notes.parent, {"a.jpg": caption}, existing=existing)
        return notes.read_text()

    assert run("skip") == "my notes\n"
    assert run("append") == "my notes, a dog\n"
    assert run("prepend") == "a dog, my notes\n"
    assert run("skip", "a cat") == "a dog, my notes\n"
    notes.with_suffix(".jpg").write_bytes(b"another")
    assert run("skip", "a cat") == "a cat, my notes\n"  # as it was asked for before
    notes.write_text("a cat, my better notes\n")
    assert run("skip", "a cat") == "a cat, my better notes\n"
    assert run("append", "a cat") == "a cat, my better notes\n"
    assert run("replace", "a cat") == "a cat\n"


def test_another_wording_is_written_again_and_only_in_captioners_part(notes: Path) -> None:
    def run(**options: Any) -> str:
        caption_all(notes.parent, {"a.jpg": "a dog"}, **options)
        return notes.read_text()

    assert run(existing="append") == "my notes, a dog\n"
    assert run(wording=Wording("sentence")) == "my notes, A dog.\n"
    assert run(wording=Wording(template="sks, {caption}"), existing="append") == (
        "my notes, sks, a dog\n"
    )
    assert run() == "my notes, a dog\n"
    assert caption_all(notes.parent, {})[0].skipped == 1


def test_a_text_that_stays_the_same_is_not_written_again(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caption_all(notes.parent, {"a.jpg": "a dog"}, existing="append")
    monkeypatch.setattr(sidecars, "write_texts", None)
    for again in ({"existing": "append"}, {}):
        said = caption_all(notes.parent, {"a.jpg": "a dog"}, overwrite=True, **again)[1]
        assert said == [("a.jpg", None)]


def test_images_without_a_place_are_failures_and_failures_stay_what_they_are() -> None:
    missing = ImageError("no such file", kind="missing")
    given = [Item("a.tar/a.jpg", b"picture"), Item("b.jpg", missing)]
    packed, absent = Sidecars().missing(given)
    assert absent is given[1]
    assert isinstance(packed.source, ImageError)
    assert packed.source.kind == "place_taken"
    assert "archive members get no text file; choose another --format" in str(packed.source)


def test_an_empty_file_has_no_text_to_keep(notes: Path) -> None:
    notes.write_text("")
    assert caption_all(notes.parent, {"a.jpg": "a dog"})[1] == [("a.jpg", None)]
    assert notes.read_text() == "a dog\n"


def test_a_text_of_another_encoding_is_replaced_but_not_joined(notes: Path) -> None:
    notes.write_bytes(b"caf\xe9")
    [(_, said)] = caption_all(notes.parent, {"a.jpg": "a dog"}, existing="append")[1]
    assert "a.txt: not UTF-8; mend that file" in said
    assert notes.read_bytes() == b"caf\xe9"
    assert caption_all(notes.parent, {"a.jpg": "a dog"}, existing="replace")[1] == [("a.jpg", None)]
    assert notes.read_text() == "a dog\n"


def test_an_xmp_file_of_darktable_gets_the_caption(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"picture")
    (tmp_path / "b.jpg").write_bytes(b"picture 2")
    own = tmp_path / "a.jpg.xmp"
    own.write_bytes(xmp.EMPTY.replace(b'about=""', b'about="" xmlns:d="d" d:rating="3"'))
    captions = {"a.jpg": "a dog", "b.jpg": "a cat"}
    caption_all(tmp_path, captions, form="xmp")
    assert {path.name for path in tmp_path.glob("*.xmp")} == {"a.jpg.xmp", "b.xmp"}
    assert xmp.texts_of(own.read_bytes()) == ("a dog", "a dog")
    assert b'd:rating="3"' in own.read_bytes()
    # The other program goes on with its file: the caption is still captioner's.
    own.write_bytes(own.read_bytes().replace(b'd:rating="3"', b'd:rating="4"'))
    texts, _ = caption_all(tmp_path, captions, form="xmp")
    assert (texts.skipped, texts.kept) == (2, [])
    caption_all(tmp_path, {"a.jpg": "a fox"} | captions, form="xmp", overwrite=True)
    assert b'd:rating="4"' in own.read_bytes()
    own.write_bytes(own.read_bytes().replace(b">a dog<", b">my dog<", 1))
    assert caption_all(tmp_path, captions, form="xmp")[0].kept == [own]


def test_a_users_description_and_alt_text_are_joined_each(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"picture")
    place = tmp_path / "a.xmp"
    place.write_bytes(xmp.with_texts(xmp.EMPTY, ("my notes", "")))
    caption_all(tmp_path, {"a.jpg": "a dog"}, form="xmp", existing="prepend")
    assert xmp.texts_of(place.read_bytes()) == ("a dog, my notes", "a dog")


def test_an_xmp_file_that_cannot_be_merged_is_one_failure(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"picture")
    (tmp_path / "a.xmp").write_text("garbage")
    for existing in EXISTING:
        [(_, said)] = caption_all(tmp_path, {"a.jpg": "x"}, form="xmp", existing=existing)[1]
        assert "a.xmp: not XML: syntax error" in said
    assert (tmp_path / "a.xmp").read_text() == "garbage"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    toys.captioner(toys.encoder()).save(folder)
    return folder


def run(model: Path, folder: Path, *words: str) -> Result:
    given = ["caption", str(folder), "--model", str(model), *words]
    return CliRunner().invoke(main, given)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("existing", EXISTING)
def test_a_dry_run_shows_what_the_run_then_does(
    form: str, existing: str, model: Path, tmp_path: Path
) -> None:
    for colour in ("red", "blue", "green"):
        toys.draw(tmp_path / f"{colour}.png", colour)
    words = ("--format", form, "--existing", existing, "--template", "sks, {caption}")
    assert run(model, tmp_path / "red.png", "--format", form).exit_code == 0
    user = xmp.with_texts(xmp.EMPTY, ("my notes", "")) if form == "xmp" else b"my notes\n"
    (tmp_path / f"blue.{form}").write_bytes(user)
    before = files(tmp_path)
    shown = run(model, tmp_path, *words, "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert files(tmp_path) == before
    assert "1 without a text: the caption would be written" in shown.stdout
    assert "1 written by captioner before: would be written again" in shown.stdout
    number = 2 if existing == "skip" else 3
    assert f"{number} file(s), 0 failure(s); a dry run, nothing was written" in shown.stderr
    assert ("1 passed over" in shown.stderr) == (existing == "skip")
    assert ("  - my notes" in shown.stdout) == (existing != "skip")
    done = run(model, tmp_path, *words)
    assert done.exit_code == 0, done.output
    added = [line[4:] for line in shown.stdout.splitlines() if line.startswith("  + ")]
    for line in added:
        assert any(line.encode() in content for content in files(tmp_path).values())
    again = run(model, tmp_path, *words, "--dry-run")
    assert (again.exit_code, again.stdout) == (0, "")
    assert "0 file(s), 0 failure(s); a dry run" in again.stderr


def test_a_dry_run_tells_failures(model: Path, tmp_path: Path) -> None:
    toys.draw(tmp_path / "a.png", "red")
    toys.draw(tmp_path / "a.bmp", "red")
    shown = run(model, tmp_path, str(tmp_path / "none.png"), "--format", "txt", "--dry-run")
    assert shown.exit_code == 1
    assert "another image has the same text file" in shown.stderr
    assert "no such file" in shown.stderr
    assert "1 file(s), 2 failure(s); a dry run" in shown.stderr
    assert not list(tmp_path.glob("*.txt"))
