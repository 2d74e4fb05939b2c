"""One point: all peers are set up, must agree, and then take turns."""

import statistics
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.generation import bandwidth, problem
from benchmarks.generation.worker import Worker

FORCED_STREAMS = 4
# Of logits that lie about 2 apart; bfloat16 and int8 round weights and states to three digits.
LOGITS_TOLERANCE = {"float32": 2e-3, "bfloat16": 0.3, "int8": 0.3}
# Text is judged by float32: what the others draw from is a little apart.
EXCESS_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.03, "int8": 0.03}
DEVIATIONS = 5
LIMIT_SECONDS = 0.1
# Of each candidate among which a peer chooses.
TRIAL_SECONDS = 0.05
TIMES = ("first_seconds", "text_seconds")


def measure(
    sizes: dict[str, Any],
    length: int,
    workers: list[Worker],
    judge: Worker,
    program: Path | None,
    *,
    rounds: int,
    seconds: float,
) -> dict[str, Any]:
    """Measures one point.

    Args:
        sizes: hidden_dim, hidden_layers and streams.
        length: characters of a text.
        workers: the peers.
        judge: a process that says what the model is.
        program: from `bandwidth.build`; None leaves the limit out.
        rounds: of all peers, each round beginning with another.
        seconds: that a peer takes in a round, at least one text.

    Returns:
        "peers", what each tells and its raw times by round, or why it cannot run; "limits", the reading of the
        weights by dtype and round.

    Raises:
        SystemExit: a peer does not compute the model that the others do.
    """
    peers: dict[str, Any] = {}
    for worker in workers:
        peers[worker.name] = worker.ask(do="set up", sizes=sizes, length=length, trial=min(seconds, TRIAL_SECONDS))
        if "cannot_run" not in peers[worker.name]:
            peers[worker.name] |= check(worker, judge, sizes)
    able = [worker for worker in workers if "cannot_run" not in peers[worker.name]]
    limits = {dtype: {"step_bytes": problem.step_bytes(sizes, dtype), "rounds": []} for dtype in _dtypes(workers)}
    for worker in able:
        peers[worker.name] |= {name: [] for name in TIMES}
    for number in range(rounds):
        first = number % max(1, len(able))
        for worker in able[first:] + able[:first]:
            answer = worker.ask(do="time", seconds=seconds)
            for name in TIMES:
                peers[worker.name][name].append(answer[name])
        for limit in limits.values() if program else ():
            limit["rounds"].append(bandwidth.measure(program, limit["step_bytes"], min(seconds, LIMIT_SECONDS)))
    for worker in able:
        result = peers[worker.name]
        times = zip(result["text_seconds"], result["first_seconds"], strict=True)
        drawn = (length - 1) * sizes["streams"]
        result["characters_per_second"] = [drawn / (text - first) for text, first in times]
        result["median"] = statistics.median(result["characters_per_second"])
    return {"sizes": sizes, "length": length, "peers": peers, "limits": limits}


def check(worker: Worker, judge: Worker, sizes: dict[str, Any]) -> dict[str, float]:
    """Holds a peer to the model: its logits after a forced text, and a text that it has drawn.

    Raises:
        SystemExit: they are not the model's.
    """
    forced = problem.text(FORCED_STREAMS, problem.FORCED).tolist()
    expected = np.asarray(judge.ask(do="reference", sizes=sizes, ids=forced)["logits"])
    answer = worker.ask(do="logits", ids=forced)
    if "cannot_run" in answer:
        raise SystemExit(f"{worker.name}: {answer['cannot_run']}, at {sizes}")
    difference = float(np.max(np.abs(np.asarray(answer["logits"]) - expected)))
    if not difference <= LOGITS_TOLERANCE[worker.dtype]:
        raise SystemExit(f"{worker.name}: its logits differ from the model's by {difference}, at {sizes}")
    ids = worker.ask(do="draw", seed=0)["ids"]
    verdict = judge.ask(do="judge", sizes=sizes, ids=ids)
    excess = abs(verdict["excess"])
    if not excess <= EXCESS_TOLERANCE[worker.dtype] + DEVIATIONS * verdict["deviation"]:
        raise SystemExit(f"{worker.name}: its text is not drawn from the model: {verdict}, at {sizes}")
    if len({tuple(row) for row in ids}) < sizes["streams"]:
        raise SystemExit(f"{worker.name}: draws the same text for several streams, at {sizes}")
    return {"logits_difference": difference, **verdict}


def _dtypes(workers: list[Worker]) -> list[str]:
    return sorted({worker.dtype for worker in workers}, reverse=True)
