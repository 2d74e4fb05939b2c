"""Executes a notebook from top to bottom with this Python, with other parameter values if asked.

    python notebooks/run.py notebooks/coffee.ipynb --set epochs=2 --out coffee.ipynb

The parameters are the assignments in the cell tagged "parameters". A cell that fails is shown with its traceback and
exit code 1; a wrong argument gets one line and exit code 2. Nothing is written in either case.
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
    """Starts the Python that runs this script: kernels registered on a machine may belong to other environments."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """Returns the command that starts the kernel."""
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="this Python", language="python")


def main(arguments: Sequence[str] | None = None) -> None:
    """Executes the notebook that the command line names."""
    parser = argparse.ArgumentParser(description="Executes a notebook from top to bottom.")
    parser.add_argument("notebook", type=Path, help="the .ipynb file; its cells run in its folder")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="value of a parameter; can be repeated"
    )
    parser.add_argument("--out", type=Path, help="where to write the executed notebook; may be the same file")
    options = parser.parse_args(arguments)
    try:
        if options.out is not None and not options.out.resolve().parent.is_dir():
            raise ValueError(f"{options.out} cannot be written: {options.out.resolve().parent} is not a folder")
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
        ValueError: no such file, or not a notebook.
    """
    try:
        content = path.read_text(encoding="utf-8")
        values = json.loads(content)
        # nbformat fails on JSON that is not an object.
        nbformat.validate(values if isinstance(values, dict) else {}, version=4)
        return nbformat.reads(content, as_version=4)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, nbformat.ValidationError) as error:
        raise ValueError(f"{path} is not a notebook in format 4") from error


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Writes a notebook atomically."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def set_parameters(notebook: nbformat.NotebookNode, settings: Sequence[str]) -> None:
    """Replaces values in the parameters cell, in place; its comments stay.

    Args:
        notebook: the notebook to change.
        settings: NAME=VALUE each, with a value of the same type as the present one.

    Raises:
        ValueError: not of this form, no parameter of this name, or a value of another type.
    """
    cell = next((cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])), None)
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting} is not NAME=VALUE")
        nodes = {} if cell is None else _assigned(cell.source)
        if name not in nodes:
            raise ValueError(f"there is no parameter {name!r}; the notebook has {', '.join(nodes) or 'none'}")
        cell.source = _with_value(cell.source, nodes[name], _checked(name, value, ast.literal_eval(nodes[name])))


def _assigned(source: str) -> dict[str, ast.expr]:
    """Returns the expressions that a cell assigns, by name."""
    statements = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return {target.id: node.value for node in statements for target in node.targets if isinstance(target, ast.Name)}


def _checked(name: str, value: str, default: Any) -> str:
    """Returns a value as Python source, after checking its type against the default's; text need not be quoted."""
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
    """Returns a source with a node, which lies within one line, replaced by a value."""
    lines = source.split("\n")
    line = lines[node.lineno - 1].encode()
    lines[node.lineno - 1] = (line[: node.col_offset] + value.encode() + line[node.end_col_offset :]).decode()
    return "\n".join(lines)


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Runs all cells in a new kernel and stores their outputs in the notebook, but nothing about this machine.

    Raises:
        CellExecutionError: a cell failed.
    """
    metadata = notebook.metadata.copy()
    with tempfile.TemporaryDirectory() as sockets:
        # Sockets in the file system need no port; Windows has only TCP.
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
    # Drop the kernel's Python version, which nbclient adds.
    notebook.metadata = metadata


if __name__ == "__main__":
    main()
