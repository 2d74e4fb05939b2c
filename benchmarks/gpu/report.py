"""The tables at the end of a run, and the numbers that sum it up."""

import math
from typing import Any

from benchmarks.common.problem import SEQ_LEN, training_flops
from benchmarks.common.report import (
    Row,
    fastest,
    markdown,
    show,
    summarize,
    summary_lines,
    time_ratio,
    torch_names,
    why,
)
from benchmarks.gpu.stages import OURS

EPOCHS, TEXT_CHARACTERS = 1000, 1_000_000
MOST_KERNELS = 6
HEADLINE = "three layers of 512"
Content = dict[str, Any]


def summary(content: Content) -> dict[str, Any]:
    """Returns the ratios of the fastest PyTorch to charjax over all points, and the speed of three layers of 512."""
    training = training_rows(content)
    columns = {"training step": training, "generation": rows(content, "generation")}
    ratios = {
        f"torch / charjax, {name}": [time_ratio(row, torch_names(row)) for row in measured]
        for name, measured in columns.items()
    }
    large = [row for row in training if (row["sizes"]["hidden_dim"], row["sizes"]["hidden_layers"]) == (512, 3)]
    return {**summarize(ratios), HEADLINE: {name: speed for row in large for name, speed in _speeds(row).items()}}


def _speeds(row: Row) -> dict[str, dict[str, float]]:
    """Returns the speed of charjax and of the fastest PyTorch."""
    found = {}
    for name in (OURS, fastest(row, torch_names(row))):
        seconds = row["peers"].get(name, {}).get("median_seconds")
        if seconds is not None:
            speed = row["sizes"]["batch_size"] * SEQ_LEN / seconds
            epochs = EPOCHS * TEXT_CHARACTERS / speed
            found[f"{name}, B {row['sizes']['batch_size']}"] = {
                "characters_per_second": speed,
                "thousand_epochs_of_1_MB_seconds": epochs,
            }
    return found


def training_rows(content: Content) -> list[Row]:
    """Returns the points of both parts of the grid."""
    return rows(content, "train_step") + rows(content, "train_step_rest")


def rows(content: Content, stage: str) -> list[Row]:
    """Returns a stage's points; none where it was not reached."""
    return content["stages"].get(stage, {}).get("rows", [])


def full_text(content: Content) -> str:
    """Returns everything that a run found, in Markdown."""
    parts = [
        ("Limits", limits_table(rows(content, "limits"))),
        ("Largest error against float64", correctness_table(rows(content, "correctness"))),
        ("Decoders against float64", sampling_table(rows(content, "sampling"))),
        (f"Training step, T = {SEQ_LEN}", training_table(training_rows(content))),
    ]
    for stage in ("train_step", "train_step_peers"):
        title = f"{stage}: milliseconds per step (! = its first losses are not charjax's)"
        parts.append((title, details_table(rows(content, stage))))
    parts += [
        ("Generation, characters/s", generation_table(rows(content, "generation"))),
        ("Profiles: milliseconds per step", profile_table(rows(content, "profile"))),
        ("Compiled in other ways: milliseconds per step", details_table(rows(content, "variants"))),
        ("A training", curve_table(rows(content, "training"))),
    ]
    lines = [f"{title}\n\n{table}\n" for title, table in parts if table.count("\n") > 1]
    totals = dict(content.get("summary", {}))
    for name, speed in totals.pop(HEADLINE, {}).items():
        hours = speed["thousand_epochs_of_1_MB_seconds"] / 3600
        took = f"{EPOCHS} epochs of 1 MB in {hours:.2f} h"
        lines.append(f"3 x 512, {name}: {speed['characters_per_second']:,.0f} characters/s, {took}")
    lines += summary_lines(totals)
    for name, stage in content["stages"].items():
        if stage["not_run"]:
            lines.append(f"{name}: {len(stage['not_run'])} points not run for lack of time; the file lists them")
        if "failed" in stage:
            lines.append(f"{name} FAILED: {stage['failed']}")
    return "\n".join(lines)


def limits_table(measured: list[Row]) -> str:
    """Returns the speeds of a large matmul and a large copy."""
    lines = [
        [show(row.get("matmul_flops", math.nan) / 1e12), show(row.get("copy_bytes", math.nan) / 1e9), why(row)]
        for row in measured
    ]
    return markdown(("matmul TFLOP/s", "copy GB/s", ""), lines)


def sampling_table(measured: list[Row]) -> str:
    """Returns what was found about every decoder."""
    lines = [
        [row["implementation"] or OURS, row["dtype"], str(row["streams"]), *_verdict(row, "state", "choice")]
        for row in measured
    ]
    return markdown(("decoder", "dtype", "streams", "state", "choice, nats", ""), lines)


def profile_table(measured: list[Row]) -> str:
    """Returns how long the device took for a step, how long it was busy, and on what."""
    lines = []
    for sizes, name, found in ((row["sizes"], *item) for row in measured for item in row["peers"].items()):
        largest = [f"{it['name']} {it['seconds'] * 1e3:.2f}" for it in found.get("kernels", [])[:MOST_KERNELS]]
        times = [show(found[key] * 1e3 if key in found else None, ".2f") for key in ("span", "busy")]
        size = "H{hidden_dim} L{hidden_layers} B{batch_size}".format(**sizes)
        lines.append([size, name, *times, show(found.get("launches")), ", ".join(largest) or why(found)])
    return markdown(("size", "peer", "span", "busy", "launches", "largest kernels"), lines)


def curve_table(measured: list[Row]) -> str:
    """Returns the losses of a training over time."""
    points = [point for row in measured for point in row.get("evaluations", [])]
    lines = [[show(at, ".1f"), show(epoch), f"{train:.3f}", f"{val:.3f}"] for at, epoch, train, val in points]
    return markdown(("seconds since the call", "epoch", "training loss", "validation loss"), lines)


def correctness_table(measured: list[Row]) -> str:
    """Returns the errors of every implementation."""
    lines = [
        [row["implementation"], row["dtype"], str(row["hidden_dim"]), *_verdict(row, "outputs", "gradients")]
        for row in measured
    ]
    return markdown(("implementation", "dtype", "H", "outputs", "gradients", ""), lines)


def _verdict(row: Row, *errors: str) -> list[str]:
    """Returns a check's errors and what follows from them, or why there are none."""
    if errors[0] not in row:
        return [*("-" for _ in errors), ("" if "refused" in row else "FAILS: ") + why(row)]
    return [*(f"{row[error]:.1e}" for error in errors), "agrees" if row["agrees"] else "DIFFERS"]


def training_table(measured: list[Row]) -> str:
    """Returns charjax beside the fastest PyTorch."""
    head = ("H", "L", "B", "charjax ms", "characters/s", "TFLOP/s", "fastest torch", "its ms", "torch / charjax")
    lines = []
    for row in measured:
        sizes, torch = row["sizes"], fastest(row, torch_names(row))
        ours, theirs = (row["peers"].get(name, {}).get("median_seconds") for name in (OURS, torch))
        ratio = time_ratio(row, torch_names(row))
        lines.append(
            [
                *map(str, sizes.values()),
                show(ours and ours * 1e3, ".2f"),
                show(ours and sizes["batch_size"] * SEQ_LEN / ours),
                show(ours and training_flops(sizes) / ours / 1e12, ".2f"),
                torch or "-",
                show(theirs and theirs * 1e3, ".2f"),
                show(ratio and ratio[0], ".2f"),
            ]
        )
    return markdown(head, lines)


def details_table(measured: list[Row]) -> str:
    """Returns every peer's milliseconds, or why it has none."""
    head = ["peer", *("H{hidden_dim} L{hidden_layers} B{batch_size}".format(**row["sizes"]) for row in measured)]
    names = dict.fromkeys(name for row in measured for name in row["peers"])
    return markdown(head, [[name, *(_milliseconds(row["peers"].get(name)) for row in measured)] for name in names])


def _milliseconds(result: dict[str, Any] | None) -> str:
    if result is None:
        return ""
    if "median_seconds" not in result:
        return why(result)
    return f"{result['median_seconds'] * 1e3:.2f}" + ("" if result.get("losses_agree", True) else " !")


def generation_table(measured: list[Row]) -> str:
    """Returns every peer's characters per second."""
    peers = list(dict.fromkeys(name for row in measured for name in row["peers"]))
    lines = []
    for row in measured:
        sizes, ratio = row["sizes"], time_ratio(row, torch_names(row))
        cells = [str(sizes[name]) for name in ("hidden_dim", "streams", "dtype")]
        for result in (row["peers"].get(name, {}) for name in peers):
            seconds = result.get("median_seconds")
            cells.append(show(sizes["streams"] * sizes["length"] / seconds) if seconds else why(result))
        lines.append([*cells, show(ratio and ratio[0], ".2f")])
    return markdown(["H", "streams", "dtype", *peers, "torch / charjax"], lines)
