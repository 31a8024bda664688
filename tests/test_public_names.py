"""The names that docs and README promise are there, and docs use no others."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import captioner

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("name", captioner.__all__)
def test_every_public_name_is_there(name):
    assert getattr(captioner, name) is not None


def test_a_checker_sees_the_same_names_as_python():
    tree = ast.parse(Path(captioner.__file__).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        f"{node.module}.{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    modules = captioner._MODULES.items()
    assert seen == {f"captioner.{module}.{name}" for module, names in modules for name in names}
    assert {name.rpartition(".")[2] for name in seen} | {"__version__"} == set(captioner.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Captioners'"):
        captioner.Captioners  # noqa: B018


def test_importing_captioner_alone_imports_nothing_large():
    code = "import captioner, sys; print(*{'torch', 'nltk', 'numpy', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_docs_and_readme_import_public_names_only():
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("captioner"):
                    assert node.module == "captioner", f"{page.name}: {node.module}"
                    found += [alias.name for alias in node.names]
    assert found
    assert set(found) <= set(captioner.__all__)


def test_the_python_page_describes_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    described = set(re.findall(r"^::: captioner\.(\w+)$", page, re.MULTILINE))
    assert described == set(captioner.__all__) - {"__version__"}
