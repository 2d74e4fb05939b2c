"""The tables that end a run, and the numbers that sum it up."""

from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.gpu.train_step import OURS
from benchmarks.peers import SEQ_LEN
from benchmarks.train_step import flops, mean_and_least, ratio

EPOCHS, TEXT_CHARACTERS = 1000, 1_000_000


def summary(content: dict[str, Any]) -> dict[str, Any]:
    """Ratios of the fastest PyTorch to charjax over all points, and the speed of three layers of 512."""
    training, generation = training_rows(content), rows(content, "generation")
    found: dict[str, Any] = {}
    for name, measured in {"training step": training, "generation": generation}.items():
        ratios = [value for row in measured if (value := torch_ratio(row)) is not None]
        if ratios:
            found[f"torch / charjax, {name}"] = mean_and_least(ratios)
    headline = {}
    for row in training:
        sizes = row["sizes"]
        if (sizes["hidden_dim"], sizes["hidden_layers"]) == (512, 3):
            torch = fastest(row, "torch")
            for name in [OURS, *([torch] if torch else [])]:
                if (seconds := median(row, name)) is not None:
                    speed = sizes["batch_size"] * SEQ_LEN / seconds
                    took = {
                        "characters_per_second": speed,
                        "thousand_epochs_of_1_MB_seconds": EPOCHS * TEXT_CHARACTERS / speed,
                    }
                    headline[f"{name}, B {sizes['batch_size']}"] = took
    return {**found, "three layers of 512": headline}


def training_rows(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The points of both parts of the grid."""
    return rows(content, "train_step") + rows(content, "train_step_rest")


def rows(content: dict[str, Any], stage: str) -> list[dict[str, Any]]:
    """A stage's points; none where it was not reached."""
    return content["stages"].get(stage, {}).get("rows", [])  # type: ignore[no-any-return]


def median(row: dict[str, Any], peer: str) -> float | None:
    """A peer's seconds per step."""
    return row["peers"].get(peer, {}).get("median_seconds")  # type: ignore[no-any-return]


def fastest(row: dict[str, Any], prefix: str) -> str | None:
    """The fastest of the peers whose names begin so."""
    able = {name: seconds for name in row["peers"] if name.startswith(prefix) and (seconds := median(row, name))}
    return min(able, key=able.__getitem__) if able else None


def torch_ratio(row: dict[str, Any]) -> float | None:
    """Time of PyTorch at its fastest over charjax's."""
    found = ratio(row, [name for name in row["peers"] if name.startswith("torch")])
    return None if found is None else found[0]


def show(content: dict[str, Any], console: Console) -> None:
    """Prints everything."""
    console.print(_correctness_table(rows(content, "correctness")))
    console.print(_training_table(training_rows(content)))
    for stage in ("train_step", "train_step_peers"):
        console.print(_details_table(rows(content, stage)))
    console.print(_generation_table(rows(content, "generation")))
    for name, numbers in content.get("summary", {}).items():
        if "geometric_mean" in numbers:
            text = f"geometric mean {numbers['geometric_mean']:.2f}, least {numbers['least']:.2f}"
            console.print(f"{name}: {text}, {numbers['points']} points")
    for name, numbers in content.get("summary", {}).get("three layers of 512", {}).items():
        hours = numbers["thousand_epochs_of_1_MB_seconds"] / 3600
        speed = numbers["characters_per_second"]
        console.print(f"3 x 512, {name}: {speed:,.0f} characters/s, {EPOCHS} epochs of 1 MB in {hours:.2f} h")
    for name, stage in content["stages"].items():
        if stage["not_run"]:
            console.print(
                f"{name}: {len(stage['not_run'])} points not run, for lack of time; they are listed in the file"
            )
        if "failed" in stage:
            console.print(f"{name} FAILED: {stage['failed']}", markup=False)


def _correctness_table(measured: list[dict[str, Any]]) -> Table:
    table = Table("implementation", "dtype", "H", "outputs", "gradients", "", title="Largest error against float64")
    for row in measured:
        if "outputs" in row:
            said = "agrees" if row["agrees"] else "DIFFERS"
            cells = [f"{row['outputs']:.1e}", f"{row['gradients']:.1e}", said]
        else:
            cells = ["-", "-", _why(row)]
        table.add_row(row["implementation"], row["dtype"], str(row["hidden_dim"]), *cells)
    return table


def _training_table(measured: list[dict[str, Any]]) -> Table:
    table = Table(
        "H", "L", "B", "charjax ms", "characters/s", "TFLOP/s", "fastest torch", "its ms", "torch / charjax",
        title=f"Training step, T = {SEQ_LEN}",
    )  # fmt: skip
    for row in measured:
        sizes, ours, torch = row["sizes"], median(row, OURS), fastest(row, "torch")
        speed = ["-", "-", "-"]
        if ours is not None:
            speed = [_ms(ours), f"{sizes['batch_size'] * SEQ_LEN / ours:,.0f}", f"{flops(sizes) / ours / 1e12:.2f}"]
        other = [torch, _ms(median(row, torch))] if torch else ["-", "-"]
        found = torch_ratio(row)
        table.add_row(*map(str, sizes.values()), *speed, *other, "-" if found is None else f"{found:.2f}")
    return table


def _details_table(measured: list[dict[str, Any]]) -> Table:
    """Every peer's milliseconds, and below them why others have none."""
    table = Table("peer", *["H{hidden_dim} L{hidden_layers} B{batch_size}".format(**row["sizes"]) for row in measured])
    table.title = "Milliseconds per training step (! = its first losses are not charjax's)"
    for peer in dict.fromkeys(name for row in measured for name in row["peers"]):
        cells = []
        for row in measured:
            result = row["peers"].get(peer)
            if result is None:
                cells.append("")
            elif "median_seconds" not in result:
                cells.append(_why(result))
            else:
                differs = "" if result.get("losses_agree", True) else " !"
                cells.append(_ms(result["median_seconds"]) + differs)
        table.add_row(peer, *cells)
    return table


def _generation_table(measured: list[dict[str, Any]]) -> Table:
    peers = list(dict.fromkeys(name for row in measured for name in row["peers"]))
    table = Table("H", "streams", "dtype", *peers, "torch / charjax", title="Generation, characters/s")
    for row in measured:
        sizes = row["sizes"]
        characters = sizes["streams"] * sizes["length"]
        cells = []
        for peer in peers:
            seconds = median(row, peer)
            cells.append(_why(row["peers"].get(peer, {})) if seconds is None else f"{characters / seconds:,.0f}")
        found = torch_ratio(row)
        head = [str(sizes["hidden_dim"]), str(sizes["streams"]), sizes["dtype"]]
        table.add_row(*head, *cells, "-" if found is None else f"{found:.2f}")
    return table


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f}"


def _why(result: dict[str, Any]) -> str:
    """Why there is no number, in a table's cell: the file has all of it."""
    words = result.get("failed") or result.get("does_not_serve") or "-"
    # Square brackets would be taken for markup.
    return words[:60].replace("[", "(").replace("]", ")")
