"""Imports run downward only: no module imports from its own floor or from one above."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FLOORS = [
    {"errors", "types", "signals", "memory", "cores", "moments", "collector"},
    {"config", "lock", "safe_files"},
    {"ops", "losses", "optimizer", "sharding", "processes", "streams", "vocab", "capacity", "choice", "seal"}
    | {"stored_arrays"},
    {"model", "text_file", "feed", "run_info", "features", "documents", "segments"},
    {"decode", "corpus"},
    {"train_state", "generate", "score", "neurons", "beam", "interop", "report", "leftovers"},
    {"train", "evaluate", "stream", "correlations", "dynamic", "surprise", "checkpoint"},
    {"tally", "run_folder", "worst"},
    {"shared_run"},
    {"fit"},
    {"arguments"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}


def top_name(path: Path) -> str:
    return path.relative_to(ROOT / "charjax").with_suffix("").parts[0]


def modules() -> list[Path]:
    return [path for path in sorted((ROOT / "charjax").rglob("*.py")) if top_name(path) != "__init__"]


def imports(path: Path) -> set[str]:
    """Names of charjax's top-level modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "charjax":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("charjax.")}
    return {name for name in found if name != "__version__"}


def test_every_module_has_a_floor():
    assert {top_name(path) for path in modules()} == set(FLOOR_OF)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downward(path):
    name = top_name(path)
    for imported in imports(path) - {name}:
        assert FLOOR_OF[imported] < FLOOR_OF[name], f"{path} imports charjax.{imported}"


def test_breaches_are_seen(tmp_path):
    breach = tmp_path / "breach.py"
    breach.write_text(
        "def f():\n    from charjax.fit import fit\n    import charjax.cli\n    from charjax import run\n"
    )
    assert imports(breach) == {"fit", "cli", "run"}
