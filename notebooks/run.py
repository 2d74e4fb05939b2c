"""Executes a notebook from top to bottom, by this Python, with other values of its parameters if asked.

    python notebooks/run.py notebooks/coffee.ipynb --set epochs=2 --out coffee.ipynb

The parameters are the assignments of the notebook's cell that is tagged "parameters". A cell that fails is shown with
its traceback, and the exit code is 1; a mistake in the arguments gets one line, and 2. Nothing is written then.
"""

import argparse
import ast
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    import nbformat
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    from traitlets.config import Config
except ImportError as error:
    print(f"run.py: error: {error.name} is not installed; pip install 'charjax[notebooks]'", file=sys.stderr)
    sys.exit(2)


class ThisPython(AsyncKernelManager):
    """Starts the Python that runs this: the kernels registered on a machine may be of other environments."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """How to start it."""
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="this Python", language="python")


def main(arguments: Sequence[str] | None = None) -> None:
    """Executes the notebook that the command line names."""
    parser = argparse.ArgumentParser(description="Executes a notebook from top to bottom.")
    parser.add_argument("notebook", type=Path, help="the .ipynb file; its cells run in its folder")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="value for a parameter; may be given often"
    )
    parser.add_argument("--out", type=Path, help="where to write the executed notebook; may be the same file")
    options = parser.parse_args(arguments)
    try:
        if options.out is not None and not options.out.resolve().parent.is_dir():
            raise ValueError(f"{options.out} cannot be written: there is no folder {options.out.resolve().parent}")
        notebook = read(options.notebook)
        set_parameters(notebook, options.set)
    except ValueError as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    started = time.monotonic()
    try:
        execute(notebook, options.notebook.resolve().parent)
    except CellExecutionError as error:
        sys.exit(f"{options.notebook}: {error}")
    if options.out is not None:
        write(notebook, options.out)
    count = sum(cell.cell_type == "code" for cell in notebook.cells)
    print(f"{options.notebook}: {count} cells in {time.monotonic() - started:.0f} s")


def read(path: Path) -> nbformat.NotebookNode:
    """Reads a notebook.

    Raises:
        ValueError: no such file, or one that is no notebook.
    """
    try:
        content = path.read_text(encoding="utf-8")
        values = json.loads(content)
        # nbformat stumbles over JSON that is no object.
        nbformat.validate(values if isinstance(values, dict) else {}, version=4)
        return nbformat.reads(content, as_version=4)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, nbformat.ValidationError) as error:
        raise ValueError(f"{path} is not a notebook of format 4") from error


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Writes a notebook in one go: what was there is replaced when it is complete."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def set_parameters(notebook: nbformat.NotebookNode, settings: Sequence[str]) -> None:
    """Puts values in the place of those in the parameters' cell; its comments stay.

    Args:
        notebook: what to change.
        settings: of the form NAME=VALUE each, with a value of the kind that stands there.

    Raises:
        ValueError: a setting that is not of this form, no parameter of this name, a value of another kind.
    """
    cell = next((cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])), None)
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting} is not of the form NAME=VALUE")
        nodes = {} if cell is None else _assigned(cell.source)
        if name not in nodes:
            raise ValueError(f"there is no parameter {name!r}; the notebook has {', '.join(nodes) or 'none'}")
        cell.source = _with_value(cell.source, nodes[name], _checked(name, value, ast.literal_eval(nodes[name])))


def _assigned(source: str) -> dict[str, ast.expr]:
    """The values that a cell assigns, by name."""
    statements = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return {target.id: node.value for node in statements for target in node.targets if isinstance(target, ast.Name)}


def _checked(name: str, value: str, default: Any) -> str:
    """Checks that a value is of the kind of the one that it replaces; text need not be quoted."""
    if isinstance(default, str):
        return repr(value)
    try:
        given = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        given = None
    if type(given) is not type(default) and (type(given), type(default)) != (int, float):
        raise ValueError(f"{name} must be of type {type(default).__name__}, such as {default}, not {value!r}")
    return value


def _with_value(source: str, node: ast.expr, value: str) -> str:
    """A source with another value in a node's place, which stands within a line."""
    lines = source.split("\n")
    line = lines[node.lineno - 1].encode()
    lines[node.lineno - 1] = (line[: node.col_offset] + value.encode() + line[node.end_col_offset :]).decode()
    return "\n".join(lines)


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Runs all cells in a new kernel and leaves in the notebook what they gave, and nothing about this machine.

    Raises:
        CellExecutionError: a cell failed.
    """
    metadata = notebook.metadata.copy()
    with tempfile.TemporaryDirectory() as sockets:
        # No port is opened, but on Windows, which knows no other way.
        transport = "tcp" if sys.platform == "win32" else "ipc"
        client = NotebookClient(
            notebook,
            kernel_manager_class=ThisPython,
            config=Config(KernelManager={"transport": transport, "connection_file": f"{sockets}/kernel.json"}),
            timeout=None,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(folder)}},
        )
        client.execute()
    # The kernel's version of Python, which nbclient notes.
    notebook.metadata = metadata


if __name__ == "__main__":
    main()
