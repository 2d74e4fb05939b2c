"""Stage 1: every implementation of an LSTM layer on the device itself, against float64."""

from typing import Any

from benchmarks.gpu.run import Run

# As shares of an array's largest value; float32 with products in true float32.
TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-2}
# There to be simple, or for processors: one size says enough of them.
PORTABLE = ("flax", "scan", "custom_vjp", "native")


def run_correctness(run: Run, share: float) -> None:
    """Checks outputs and gradients of two layers; the implementations that are made for the device come first."""
    stage = run.results.stage("correctness")
    stage["tolerance"] = TOLERANCE
    names = sorted(run.about["jax"]["implementations"], key=lambda name: name in PORTABLE)
    first = run.plan.check_hidden[0]
    items = [
        {"implementation": name, "dtype": dtype, "hidden_dim": hidden}
        for name in names
        for dtype in ("bfloat16", "float32")
        for hidden in run.plan.check_hidden
        if hidden == first or name not in PORTABLE
    ]

    def check(item: dict[str, Any]) -> None:
        run.say(f"correctness: {' '.join(str(value) for value in item.values())}")
        size = {"batch_size": run.plan.check_batch, "seq_len": run.plan.check_time}
        hung = next(
            (row for row in stage["rows"] if row["implementation"] == item["implementation"] and "hung" in row), None
        )
        if hung:
            reply = {"failed": f"not tried again after: {hung['failed']}"}
        else:
            reply = run.ask("jax", do="check", **item, **size)
        if "outputs" in reply:
            reply["agrees"] = max(reply["outputs"], reply["gradients"]) <= TOLERANCE[item["dtype"]]
        stage["rows"].append({**item, **size, **reply})
        run.results.save()

    stage["not_run"] = run.clock.take(items, share, check)
