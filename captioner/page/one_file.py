"""Pages of one file: styles and script stand in the page, and its content policy allows only these.

Modules cannot import each other in a page that is opened from disk. So `joined` writes them one
after the other, each in a function of its own.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from captioner.system.escapes import visible

HERE = Path(__file__).parent
_IMPORT = re.compile(r'^import \{([^}]*)\} from "\./(\w+)\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export ((?:async )?(?:function|const|class) (\w+))", re.MULTILINE)


def template_of(folder: Path, name: str, css: str, js: str) -> Template:
    """Return a template that escapes every value, with `css`, `js`, `css_hash` and `js_hash`."""
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for kind, text in (("css", css), ("js", js)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        environment.globals[kind] = Markup(text)
        environment.globals[f"{kind}_hash"] = f"sha256-{digest}"
    return environment.get_template(name)


def _visible(value: Any) -> Any:
    """Make control characters in plain text visible; leave HTML and JSON unchanged."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def page_template(name: str, styles: Sequence[str]) -> Template:
    """Return a template of the page's own, `NAME.html`, with `NAME.js` and all that it imports."""
    css = "".join(map(style, styles))
    return template_of(HERE / "templates", f"{name}.html", css, joined(name))


def style(name: str) -> str:
    """Return one of the page's style sheets."""
    return (HERE / "css" / f"{name}.css").read_text(encoding="utf-8")


def joined(name: str) -> str:
    """Return a module of the page's scripts and all that it imports as one script."""
    modules: dict[str, str] = {}

    def add(name: str) -> None:
        if name in modules:
            return
        text = (HERE / "js" / f"{name}.js").read_text(encoding="utf-8")
        for _, other in _IMPORT.findall(text):
            add(other)
        exported = ", ".join(each for _, each in _EXPORT.findall(text))
        body = _EXPORT.sub(r"\1", _IMPORT.sub(r"const {\1} = module_\2;\n", text))
        modules[name] = (
            f"const module_{name} = (() => {{\n{body}\nreturn {{ {exported} }};\n}})();\n"
        )

    add(name)
    return '"use strict";\n' + "".join(modules.values())
