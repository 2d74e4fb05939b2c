"""`charjax export`: exports a trained model for use in other programs."""

import importlib

import humanize

from charjax.cli.arguments import ExportCommand
from charjax.cli.output import write, write_facts


def run(command: ExportCommand) -> None:
    """Writes the file and prints the Python code that reads it."""
    module = importlib.import_module(f"charjax.export.{command.to}")
    getattr(module, f"write_{command.to}")(command.run, command.out)
    size = humanize.naturalsize(command.out.stat().st_size, format="%.3g")
    write_facts([("written", f"{command.out}, {size}")])
    if command.to == "html":
        write("Open it in a browser.\n")
    else:
        reader = module.READER.replace('"FILE"', repr(str(command.out)))
        write(f"\n{reader}")
