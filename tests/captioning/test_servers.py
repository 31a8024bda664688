"""The result files of test servers: images without captions, ids as the server spells them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from captioner.captioning.sources.item import text_id
from captioner.captioning.sources.tables import table_images
from captioner.cli import main

import layouts
import toys

SERVERS = [
    (layouts.coco, "annotations/image_info_test2017.json", [9]),
    (layouts.nocaps, "nocaps_val_image_info.json", [0, 1, 2]),
    (layouts.nocaps, "nocaps_test_image_info.json", [4500]),
    (layouts.vizwiz, "annotations/test.json", [4]),
    (layouts.textcaps, "TextCaps_0.1_test.json", ["00ca", "0054139705212005"]),
]


@pytest.mark.parametrize(("make", "file", "ids"), SERVERS, ids=[file for _, file, _ in SERVERS])
def test_a_split_without_captions_becomes_the_servers_result_file(
    make: Callable[[Path], None], file: str, ids: list[object], tmp_path: Path
) -> None:
    make(tmp_path)
    toys.captioner().save(tmp_path / "model")
    output = tmp_path / "captions_test2014_mine_results.json"
    command = ["caption", str(tmp_path / file), "--model", str(tmp_path / "model")]
    for _ in range(2):  # the second run takes all from the journal
        ran = CliRunner().invoke(main, [*command, "--output", str(output)])
        assert ran.exit_code == 0, ran.stderr
        rows = json.loads(output.read_text(encoding="utf-8"))
        assert [row["image_id"] for row in rows] == ids
        assert all([*row] == ["image_id", "caption"] for row in rows)
        assert all(isinstance(row["caption"], str) for row in rows)


def test_ids_keep_the_type_that_json_gives_them(tmp_path: Path) -> None:
    for number in range(3):
        layouts.picture(tmp_path / f"{number}.png", number)
    ids = (7, "007", "x7")
    rows = [{"image_id": given, "image": f"{n}.png"} for n, given in enumerate(ids)]
    layouts.dump(tmp_path / "list.json", rows)
    given = [item.image_id for item in table_images(str(tmp_path / "list.json"))]
    assert given == ["7", '"007"', "x7"]
    assert [text_id(each) for each in given] == [None, "007", None]
    toys.captioner().save(tmp_path / "model")
    command = ["caption", str(tmp_path / "list.json"), "--model", str(tmp_path / "model")]
    written = CliRunner().invoke(main, [*command, "--format", "coco"]).stdout
    assert [row["image_id"] for row in json.loads(written)] == [7, "007", "x7"]
    lines = CliRunner().invoke(main, [*command, "--format", "jsonl"]).stdout.splitlines()
    assert [json.loads(line)["image_id"] for line in lines] == ["7", "007", "x7"]


def test_a_split_folder_elsewhere_is_not_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts.picture(tmp_path / "here/test/1.png")
    layouts.dump(tmp_path / "there/x_test.json", {"images": [{"id": 1, "file_name": "1.png"}]})
    monkeypatch.chdir(tmp_path / "here")
    (item,) = table_images(str(tmp_path / "there/x_test.json"))
    assert "no such file" in str(item.source)
