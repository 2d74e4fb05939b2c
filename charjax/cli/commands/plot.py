"""`charjax plot`: plots the loss curves of runs."""

import io
from collections.abc import Sequence

from charjax.cli.arguments import PlotCommand
from charjax.cli.output import report_page
from charjax.cli.run_comparison import axis_title, curves, read_evaluated
from charjax.errors import UserError
from charjax.host.atomic_file import writing_output
from charjax.rendering.line_chart import Curve, line_chart
from charjax.rendering.svg_axes import COLORS
from charjax.runs.output_file import check_output

_UP = "nats per character"
_BY_MATPLOTLIB = (".png", ".pdf")


def run(command: PlotCommand) -> None:
    """Writes the image."""
    kind = command.out.suffix.lower()
    if kind not in (".svg", *_BY_MATPLOTLIB):
        raise UserError(f"--out must end in .svg, .png or .pdf, not {command.out.name}")
    check_output(command.out, command.runs)
    found, across = curves(read_evaluated(command.runs), command.against), axis_title(command.against)
    with writing_output(command.out) as file:
        file.write(
            line_chart(found, across=across, up=_UP).encode() if kind == ".svg" else _plotted(found, across, kind)
        )
    report_page(command.out)


def _plotted(found: Sequence[Curve], across: str, kind: str) -> bytes:
    """Draws the curves with matplotlib."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 -- an extra
    except ImportError as error:
        raise UserError(f'a {kind} image needs matplotlib: pip install "charjax[plots]"; or use .svg') from error
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for curve in found:
        style = "--" if curve.dashed else "-"
        axes.plot(*zip(*curve.points, strict=True), style, color=COLORS[curve.color % len(COLORS)], label=curve.name)
    axes.set(xlabel=across, ylabel=_UP)
    axes.grid(alpha=0.3)
    axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format=kind[1:], dpi=150)
    return content.getvalue()
