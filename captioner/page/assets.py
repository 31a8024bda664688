"""Every file of the page, ready to be served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from captioner.config import DecodingConfig, bundled

HERE = Path(__file__).parent
EXAMPLES = ("dog", "skier", "beach")  # drawn, in data/pictures
# The page has no inline code and asks no other server.
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
)


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is sent."""

    content: bytes
    media_type: str


def page_assets() -> dict[str, Asset]:
    """Return the files of the page by path: `/`, `/settings.html`, `/page/main.js` and so on.

    None of them holds anything private, so none needs the server's token. They are served with
    `POLICY` as Content-Security-Policy.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    assets = {}
    for path, template in (("/", "index.html"), ("/settings.html", "settings.html")):
        text = environment.get_template(template).render(
            examples=EXAMPLES, settings=DecodingConfig.model_fields
        )
        assets[path] = Asset(text.encode(), "text/html; charset=utf-8")
    for folder, media_type in (("css", "text/css"), ("js", "text/javascript")):
        for file in sorted((HERE / folder).iterdir()):
            assets[f"/page/{file.name}"] = Asset(file.read_bytes(), f"{media_type}; charset=utf-8")
    icon = (HERE / "icon.svg").read_bytes()
    assets["/page/icon.svg"] = Asset(icon, "image/svg+xml")
    for name in EXAMPLES:
        picture = bundled(f"data/pictures/{name}.jpg").read_bytes()
        assets[f"/page/{name}.jpg"] = Asset(picture, "image/jpeg")
    return assets
