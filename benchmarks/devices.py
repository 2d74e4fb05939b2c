"""Several devices against one: two cores against a core, and weak scaling over devices that share two cores.

    python -m benchmarks.devices

Trainings (`fit`) take turns, each in a process of its own, as in `benchmarks.saving`. First H = 256, L = 2, B = 64 on
one core, to which its process is pinned, and on all, a device each. Then 1 to 8 simulated devices with 64 streams each:
they share the cores there are, so what grows with them is work, and only a loss can show.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.saving import TEXT, Training, in_turn

TARGET = 1.7
WEAK = (1, 2, 4, 8)


def speeds(measured: list[dict[str, float]], chars: dict[str, int]) -> list[dict[str, float]]:
    """Characters per second of each round."""
    return [{name: chars[name] / value for name, value in seconds.items()} for seconds in measured]


def ratio_to(first: str, rounds: list[dict[str, float]]) -> dict[str, float]:
    """The median of the rounds' ratios of each speed to that of one."""
    return {name: statistics.median(speed[name] / speed[first] for speed in rounds) for name in rounds[0]}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden-dim", type=int, default=256)
    parser.add_argument("--hidden-layers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64, help="of one device in weak scaling, of all before it")
    parser.add_argument("--seq-len", type=int, default=100)
    parser.add_argument("--every", type=int, default=30, help="steps of a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=machine.RESULTS, help="folder to write to")
    arguments = parser.parse_args()
    names = ("hidden_dim", "hidden_layers", "batch_size", "seq_len", "every")
    point: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    run = {**point, "text": str(TEXT)}
    step = point["batch_size"] * point["seq_len"] * point["every"]

    pair = in_turn({"a core": Training(run, core=0), "all cores": Training(run)}, arguments.rounds)
    strong = speeds(pair, {"a core": step, "all cores": step})
    weak_runs = {
        f"{devices} devices": Training({**run, "batch_size": devices * point["batch_size"]}, devices=devices)
        for devices in WEAK
    }
    chars = {f"{devices} devices": devices * step for devices in WEAK}
    weak = speeds(in_turn(weak_runs, arguments.rounds), chars)
    content = {
        "sizes": point,
        "chars_per_second": strong,
        "all_cores_to_a_core": ratio_to("a core", strong)["all cores"],
        "weak_chars_per_second": weak,
        "weak_to_one_device": ratio_to("1 devices", weak),
    }
    path = machine.save("devices", content, arguments.results)
    print(f"all cores: {content['all_cores_to_a_core']:.2f} times the speed of a core (to reach: {TARGET})")
    for name, ratio in content["weak_to_one_device"].items():
        print(f"{name}: {statistics.median(speed[name] for speed in weak):,.0f} characters/s, {ratio:.2f}")
    print("written:", path)


if __name__ == "__main__":
    main()
