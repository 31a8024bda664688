"""Hooks of mkdocs.yml: reference pages from the code, and a site that needs no network.

- TeX becomes MathML, which browsers render.
- Mermaid's script is copied into the site from an installed package.
- Comments such as `<!-- command line -->` are replaced by reference text from the code.
"""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, get_args, get_origin

import click
import yaml
from latex2mathml.converter import convert
from mkdocs.structure.files import File
from mkdocs.utils import get_relative_url
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from captioner.cli import main
from captioner.config import Config

ROOT = Path(__file__).parents[1]
MERMAID = "javascripts/mermaid.js"
TRY = ROOT / "build" / "try"  # of `scripts/try_page.py`; what the page "Try it" fetches
MATH = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: Any) -> None:
    """Add the decision records to the navigation."""
    records = [f"decisions/{path.name}" for path in _records()]
    for section in config.nav:
        section.get("Decisions", []).extend(records)


def on_files(files: Any, config: Any) -> None:
    """Add CHANGELOG, CONTRIBUTING and Mermaid's script to the site."""
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name.lower(), content=text))
    script = distribution("mermaidx").locate_file("mermaidx/assets/mermaid.js")
    files.append(File.generated(config, MERMAID, abs_src_path=str(script)))
    for path in sorted(TRY.glob("*")):
        files.append(File.generated(config, f"try/{path.name}", abs_src_path=str(path)))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the comments by reference text from the code."""
    for name, text in (
        ("command line", _command_line),
        ("configuration", _configuration),
        ("decisions", _decisions),
        ("size of the model to try", _size_to_try),
    ):
        comment = f"<!-- {name} -->"
        if comment in markdown:
            markdown = markdown.replace(comment, text())
    return markdown


def on_page_content(content: str, **_: Any) -> str:
    """Convert TeX to MathML."""

    def to_mathml(match: re.Match[str]) -> str:
        display = "block" if match[1] == "div" else "inline"
        return str(convert(html.unescape(match[2]).strip(), display=display))

    return MATH.sub(to_mathml, content)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Load Mermaid's script on pages with a diagram; the theme would load it from a server."""
    if 'class="mermaid"' not in output:
        return output
    source = get_relative_url(MERMAID, page.url)
    return output.replace("</head>", f'<script src="{source}"></script></head>')


def _records() -> list[Path]:
    return sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))


def _decisions() -> str:
    lines = []
    for path in _records():
        title = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        lines.append(f"- [{title}]({path.name})")
    return "\n".join(lines)


def _size_to_try() -> str:
    size = sum(path.stat().st_size for path in TRY.glob("*.gz"))
    return f"{size / 1e6:.1f} MB" if size else "which this build of the site lacks"


def _plain(text: str) -> str:
    """Escape HTML, links, formulas and table cells in Markdown text."""
    text = html.escape(text, quote=False)
    return text.replace("[", "&#91;").replace("$", "&#36;").replace("|", "&#124;")


def _cell(text: str) -> str:
    return _plain(" ".join(text.split()))


def _command_line() -> str:
    """Describe each command from its click options."""
    blocks = []
    for name in main.list_commands(click.Context(main)):
        command = main.get_command(click.Context(main), name)
        assert command is not None
        context = click.Context(command, info_name=f"captioner {name}")
        help_text = inspect.cleandoc((command.help or "").replace("\b", ""))
        blocks += [f"## captioner {name}", _plain(help_text)]
        blocks.append(f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```")
        rows = ["| option | meaning |", "|---|---|"]
        for parameter in command.params:
            record = parameter.get_help_record(context)
            if isinstance(parameter, click.Option) and record and parameter.name != "help":
                rows.append(f"| <code>{_plain(record[0])}</code> | {_cell(record[1])} |")
        blocks.append("\n".join(rows))
    return "\n\n".join(blocks)


def _configuration() -> str:
    """Describe each section from its pydantic model."""
    blocks = []
    for name, field in Config.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        blocks += [f"## {name}", (section.__doc__ or "").split("\n\n    Attributes:")[0]]
        rows = ["| setting | default | values | meaning |", "|---|---|---|---|"]
        blocks.append("\n".join([*rows, *_settings(section)]))
    return "\n\n".join(blocks)


def _settings(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Describe each setting; for a list of sections, also the settings of an item."""
    for (key, setting), default in zip(
        section.model_fields.items(), section().model_dump(mode="json").values(), strict=True
    ):
        meaning = _cell(setting.description or "")
        [item] = get_args(setting.annotation)[:1] or [None]
        if isinstance(item, type) and issubclass(item, BaseModel):
            yield f"| `{prefix}{key}` | one item | list | {meaning} |"
            yield from _settings(item, f"{prefix}{key}.0.")
        else:
            value = yaml.safe_dump(default, default_flow_style=True).removesuffix("...\n").strip()
            yield f"| `{prefix}{key}` | `{value}` | {_values(setting)} | {meaning} |"


def _values(setting: FieldInfo) -> str:
    """Return the allowed values of a setting, such as `1 to 1000` or `rnn`, `gru`."""
    kinds = [kind for kind in get_args(setting.annotation) or () if kind is not type(None)]
    if all(isinstance(kind, str) for kind in kinds) and kinds:
        return ", ".join(f"`{kind}`" for kind in kinds)
    bounds = {}
    for holder in [setting, *(kind for kind in kinds if hasattr(kind, "__metadata__"))]:
        for item in getattr(holder, "__metadata__", None) or holder.metadata:
            for constraint in getattr(item, "metadata", [item]):
                for sign in ("ge", "gt", "le", "lt"):
                    if (bound := getattr(constraint, sign, None)) is not None:
                        bounds[sign] = bound
    return _bounds(bounds) if bounds else _kind(setting.annotation)


def _bounds(bounds: dict[str, float]) -> str:
    low, high = bounds.get("ge", bounds.get("gt", 0)), bounds.get("le", bounds.get("lt", 0))
    below = "below " if "lt" in bounds else ""
    above = "above " if "gt" in bounds else ""
    return f"{above}{_number(low)} to {below}{_number(high)}"


def _number(value: float) -> str:
    if isinstance(value, int) and value > 2**40:
        return "2^63 - 1"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _kind(annotation: Any) -> str:
    names = {bool: "true, false", str: "text", int: "whole number", float: "number"}
    if get_origin(annotation) in (list, dict):
        return str(get_origin(annotation).__name__)
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)] or [annotation]
    return ", ".join(names.get(kind, getattr(kind, "__name__", "")) for kind in kinds)
