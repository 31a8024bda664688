"""The files of the page: whole, self-contained, and each of them reachable."""

import html
import re

from captioner.config import DecodingConfig
from captioner.page.assets import POLICY, page_assets

ASSETS = page_assets()
TEXTS = {
    path: asset.content.decode() for path, asset in ASSETS.items() if "charset" in asset.media_type
}


def test_no_file_names_another_server():
    for path, text in TEXTS.items():
        addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text))
        assert addresses <= {"http://www.w3.org"}, path  # the name of SVG


def test_no_code_is_inline():
    for path, text in TEXTS.items():
        if path.endswith((".js", ".css")):
            continue
        assert not re.search(r"<style|style=|\son\w+=|javascript:", text), path
        assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text)), path
    assert "unsafe" not in POLICY


def test_what_the_pages_and_modules_name_is_there():
    for path, text in TEXTS.items():
        names = re.findall(r"(?:src|href)=\"([^\"#]+)", text)
        names += [f"page/{name}" for name in re.findall(r"from \"\./([^\"]+)", text)]
        assert {f"/{name.removeprefix('./')}" for name in names} <= ASSETS.keys() | {
            "/./",
            "/openapi.yaml",
        }, path


def test_every_setting_has_its_meaning():
    text = html.unescape(TEXTS["/settings.html"])
    for name, field in DecodingConfig.model_fields.items():
        assert f'id="{name}"' in text
        assert field.description[1:] in text
