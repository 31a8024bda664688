"""Archives whose members would get out, or are no pictures, or are not whole."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hostile_files import jpeg


@dataclass(frozen=True)
class TarCase:
    """One archive and what should come of its members, in order: (name, "ok" or a kind)."""

    name: str
    what: str
    path: Path
    members: tuple[tuple[str, str], ...]


def sparse_member(name: str, size: int) -> bytes:
    """Return a member as GNU tar writes it for a file of holes: one block, and the claimed size."""
    info = tarfile.TarInfo(name)
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410] = b"%011o\0" % 0, b"%011o\0" % 512
    header[483:495] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"\xff\xd8\xff" + bytes(509)


def make_tars(folder: Path) -> list[TarCase]:
    """Write archives whose members would get out, or are no files; nothing is ever unpacked."""

    def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        info.size = len(jpeg()) if kind == tarfile.REGTYPE else 0
        return info

    def archive(file: str, *members: tarfile.TarInfo) -> Path:
        with tarfile.open(folder / file, "w") as tar:
            for info in members:
                tar.addfile(info, io.BytesIO(jpeg()) if info.isreg() else None)
        return folder / file

    folder.mkdir(parents=True, exist_ok=True)
    names = ("../outside.jpg", "/etc/photo.jpg", "a/../../b.jpg", "a\nb.jpg", "./photo.jpg")
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
    links = [member(f"{i}.jpg", kind, "/etc/passwd") for i, kind in enumerate(kinds)]
    whole = archive("cut.tar", member("first.jpg"), member("second.jpg"))
    first = 512 + -(-len(jpeg()) // 512) * 512  # header and padded content
    whole.write_bytes(whole.read_bytes()[: first + 512 + len(jpeg()) // 2])
    claims = archive("claims.tar", member("photo.jpg"))
    data = bytearray(claims.read_bytes())
    data[124:136] = b"77777777777\0"  # 8 GiB
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data[:512]):06o}\0 ".encode()
    claims.write_bytes(data)
    (folder / "text.tar").write_bytes(b"not an archive\n" * 99)
    (folder / "empty.tar").write_bytes(b"")
    out = archive("outside.tar", *(member(name) for name in names))
    special = archive("special.tar", *links, member("good.jpg"))
    twice = archive("twice.tar", member("photo.jpg"), member("photo.jpg"))
    # Names are only names: nothing is written under them. What is no file has no picture.
    return [
        TarCase("tar-outside", "member names that lead outside", out, _all(names, "ok")),
        TarCase(
            "tar-special",
            "links, a pipe and a device as members, then a picture",
            special,
            (*_all([info.name for info in links], "unreadable"), ("good.jpg", "ok")),
        ),
        TarCase("tar-twice", "two members of one name", twice, _all(["photo.jpg"] * 2, "ok")),
        TarCase(
            "tar-cut",
            "archive cut in its second member",
            whole,
            (("first.jpg", "ok"), ("second.jpg", "damaged")),
        ),
        TarCase("tar-claims", "member that claims 8 GiB", claims, (("photo.jpg", "damaged"),)),
        TarCase("tar-text", "text named .tar", folder / "text.tar", (("", "not_an_image"),)),
        TarCase("tar-empty", "empty archive", folder / "empty.tar", (("", "empty"),)),
    ]


def _all(names: Sequence[str], outcome: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, outcome) for name in names)
