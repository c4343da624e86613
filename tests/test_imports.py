"""Imports point downward only: cli -> methods -> {diffusion, nn, data, engine, ...} -> ops -> _core.

Read from the source, imports inside functions included, so that nothing has to be installed or built.
"""

import ast
from pathlib import Path

import pytest

import tenfold

PACKAGE = Path(tenfold.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

MIDDLE = {"diffusion", "nn", "data", "engine", "logic", "envs"}

# What each part may import besides itself, tenfold.errors and the version; a name with a dot is one module.
# data writes its cache whole through the engine's atomic writer, and its settings are hashed as
# configurations are; diffusion builds on nn's blocks, fetches its text encoder's weights through data, and
# its load_generator reads a run; info describes the build itself.
ALLOWED = {
    "__init__": set(),
    "errors": set(),
    "ops": {"_core"},
    "nn": {"ops"},
    "engine": {"ops"},
    "logic": {"ops"},
    "envs": {"ops", "_core"},
    "data": {"ops", "engine.atomic", "engine.config"},
    "diffusion": {"ops", "nn", "data", "engine"},
    "methods": {"ops", *MIDDLE},
    "info": {"_core"},
    "bench": {"ops", "info", *MIDDLE},
    "__main__": {"cli"},
    "cli": {"methods", "info", "bench", "ops", *MIDDLE},
}


def imports(tree: ast.AST, package: str) -> set[str]:
    """The modules of tenfold that `tree` imports, without "tenfold."; `package` is where the file lies."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            )
            module = ".".join(filter(None, (base, node.module)))
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("tenfold.") for name in found if name.startswith("tenfold.")}


def faults(source: str, file: str) -> list[str]:
    """What is imported against the rules by `source`, which lies at `file` relative to the package."""
    parts = Path(file).with_suffix("").parts
    layer = parts[0]
    package = ".".join(("tenfold", *parts[:-1]))
    if layer not in ALLOWED:
        return [f"{file}: which layer is {layer}? Add it to the table in this test"]
    # A method sees its own folder only, any other layer all of itself.
    own = ".".join(parts[:2] if layer == "methods" else parts[:1])
    fine = [f"{name}." for name in (own, "errors", "__version__", *sorted(ALLOWED[layer]))]
    found = sorted(imports(ast.parse(source), package))
    return [
        f"{file} imports tenfold.{name}"
        for name in found
        if not any(f"{name}.".startswith(prefix) for prefix in fine)
    ]


@pytest.mark.parametrize("file", [str(path.relative_to(PACKAGE)) for path in FILES])
def test_imports_point_downward(file):
    assert faults((PACKAGE / file).read_text(encoding="utf-8"), file) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("nn/block.py", "from tenfold import _core"),
        ("nn/block.py", "import tenfold._core as core"),
        ("nn/block.py", "from tenfold._core import gather"),
        ("engine/run.py", "def f():\n    from tenfold.data import fetch"),
        ("data/fetch.py", "from tenfold.engine import checkpoint"),
        ("data/fetch.py", "from tenfold.engine.run import RunDirectory"),
        ("ops/patches.py", "from tenfold.nn import attention"),
        ("ops/patches.py", "from ..nn import attention"),
        ("nn/block.py", "from .. import _core"),
        ("methods/one/train.py", "from tenfold.methods.two import model"),
        ("methods/one/train.py", "from ..two import model"),
        ("methods/one/train.py", "from tenfold.methods import two"),
        ("methods/one/train.py", "from tenfold.cli import main"),
        ("errors.py", "from tenfold.engine import atomic"),
        ("novel/thing.py", ""),
    ],
)
def test_the_check_sees_violations(file, source):
    assert len(faults(source, file)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("ops/patches.py", "from tenfold import _core"),
        ("ops/patches.py", "from .. import _core\nfrom . import _arrays"),
        ("data/fetch.py", "from tenfold.engine.atomic import atomic_write"),
        (
            "methods/one/train.py",
            "from tenfold import __version__\nfrom tenfold.methods.one.model import Model",
        ),
        ("methods/one/train.py", "from . import model\nfrom .model import Model\nimport tenfold.engine.run"),
        ("cli.py", "import torch\nfrom tenfold.methods.one import train"),
    ],
)
def test_the_check_lets_the_rest_pass(file, source):
    assert faults(source, file) == []


def test_the_engine_and_the_command_line_load_no_torch_by_themselves():
    """Only checkpoints need torch; the rest of the engine serves `tenfold info` and the data commands too."""
    light = ["cli.py", *(f"engine/{name}.py" for name in ("__init__", "atomic", "config", "run", "options"))]
    for file in light:
        tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
        names = {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not any(
            str(name).split(".")[0] in {"torch", "numpy", "rich", "matplotlib"} for name in names
        ), file
