"""The public names are there, and a checker sees them too."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import captioner


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
