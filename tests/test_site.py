"""The site says what the code says, and asks no server for anything."""

import html
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from captioner.cli import main
from captioner.config import Config

pytest.importorskip("mkdocs")
pytest.importorskip("latex2mathml")

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = sorted((ROOT / "docs").rglob("*.md"))


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "scripts" / "mkdocs_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_line_page_names_every_option(hooks):
    page = hooks.on_page_markdown("<!-- command line -->")
    for name in main.list_commands(click.Context(main)):
        _, found, section = page.partition(f"## captioner {name}\n")
        assert found
        section = section.partition("\n## ")[0]
        for parameter in main.get_command(click.Context(main), name).params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.opts[-1] in section


def test_the_configuration_page_names_every_setting_and_its_values(hooks):
    page = hooks.on_page_markdown("<!-- configuration -->")
    for name, field in Config.model_fields.items():
        section = page.partition(f"## {name}\n")[2].partition("\n## ")[0]
        for setting in field.annotation.model_fields:
            assert f"| `{setting}` |" in section
    assert "| `clip_norm` | `5.0` | 1e-12 to 1e+12 | maximum global gradient norm |" in page
    assert "| `schedule` | `cosine` | `cosine`, `linear`, `constant` |" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_formulas_become_mathml_whole(hooks, page):
    text = page.read_text(encoding="utf-8")
    formulas = [body for language, body in FENCE.findall(text) if language == "math"]
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    formulas += re.findall(r"(?<![\\$\w])\$([^\s$][^$\n]*)\$", prose)
    for formula in formulas:
        escaped = formula.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        drawn = hooks.on_page_content(f'<div class="arithmatex">\\[{escaped}\\]</div>')
        assert drawn.startswith("<math")
        shown = html.unescape(re.sub(r"<[^>]+>", "", drawn))
        assert not {"\\", "&"} & set(shown)  # alignments: browsers' MathML has none


@pytest.mark.slow
def test_no_page_asks_a_server(tmp_path):
    pytest.importorskip("mermaidx")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]+src=\"?([^\" >]+)", text)
        loaded += re.findall(r"<link[^>]+rel=\"?(?:stylesheet|preconnect)[^>]+", text)
        assert [each for each in loaded if "//" in each] == []
        if 'class="mermaid"' in text:
            assert any("javascripts/mermaid" in each for each in loaded)
