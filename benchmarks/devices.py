"""Several devices against one: two cores against one core, and weak scaling over devices that share the cores.

    python -m benchmarks.devices

Trainings (`fit`) take turns, each in a process of its own. First H = 256, L = 2, B = 64 on one core, to which its
process is pinned, and on all cores, one device each. Then 1 to 8 simulated devices with 64 sequences each: they share
the cores, so only the work grows with them, and only a loss can show.
"""

import statistics
from collections.abc import Sequence

from benchmarks.common.fits import make_fit_parser, make_training, sizes_of, take_turns
from benchmarks.common.problem import TEXT
from benchmarks.common.results import ResultsFile

TARGET = 1.7
WEAK = {f"{devices} devices": devices for devices in (1, 2, 4, 8)}


def speeds(measured: list[dict[str, float]], chars: dict[str, int]) -> list[dict[str, float]]:
    """Returns the characters per second of each round."""
    return [{name: chars[name] / seconds for name, seconds in turn.items()} for turn in measured]


def ratio_to(first: str, rounds: list[dict[str, float]]) -> dict[str, float]:
    """Returns the median of the rounds' ratios of each speed to that of one training."""
    return {name: statistics.median(speed[name] / speed[first] for speed in rounds) for name in rounds[0]}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    arguments = make_fit_parser("devices", __doc__, hidden_dim=256, every=30, rounds=5).parse_args(argv)
    sizes = sizes_of(arguments)
    chars = sizes["batch_size"] * sizes["seq_len"] * sizes["every"]
    pair = [make_training("a core", sizes, TEXT, core=0), make_training("all cores", sizes, TEXT)]
    strong = speeds(take_turns(pair, arguments.rounds), {"a core": chars, "all cores": chars})
    grown = [
        make_training(name, sizes | {"batch_size": devices * sizes["batch_size"]}, TEXT, devices=devices)
        for name, devices in WEAK.items()
    ]
    weak = speeds(take_turns(grown, arguments.rounds), {name: devices * chars for name, devices in WEAK.items()})
    file = ResultsFile(
        arguments.results,
        "devices",
        sizes=sizes,
        chars_per_second=strong,
        all_cores_to_a_core=ratio_to("a core", strong)["all cores"],
        weak_chars_per_second=weak,
        weak_to_one_device=ratio_to("1 devices", weak),
    )
    print(f"all cores: {file.content['all_cores_to_a_core']:.2f} times the speed of one core (target: {TARGET})")
    for name, ratio in file.content["weak_to_one_device"].items():
        print(f"{name}: {statistics.median(speed[name] for speed in weak):,.0f} characters/s, {ratio:.2f}")
    print("written:", file.save())


if __name__ == "__main__":
    main()
