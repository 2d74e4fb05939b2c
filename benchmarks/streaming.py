"""What a text that stays in its file costs: training on chunks of it against training on it in memory, in turn.

    python -m benchmarks.streaming
    python -m benchmarks.streaming --hidden-dim 128 --every 200

Two trainings (`fit`) take turns of so many steps, each in a process of its own. One may keep 1 MB of a text of about
13 MB in memory at once, the other all of it. A ratio is that of a round's two speeds.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.fits import make_fit_parser, make_training, ratio_of_speeds, sizes_of, take_turns
from benchmarks.common.problem import TEXT
from benchmarks.common.results import ResultsFile

COPIES = 12
MEMORY_MB = 1
TARGET = 0.95


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    arguments = make_fit_parser("streaming", __doc__, hidden_dim=512, every=20, rounds=9).parse_args(argv)
    sizes = sizes_of(arguments)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_bytes(COPIES * TEXT.read_bytes())
        trainings = [
            make_training("in memory", sizes, text, memory_mb=1000),
            make_training("in its file", sizes, text, memory_mb=MEMORY_MB),
        ]
        measured = take_turns(trainings, arguments.rounds)
        size = text.stat().st_size / 1e6
    ratio = ratio_of_speeds(measured, "in its file", "in memory")
    content = {"sizes": sizes, "text_megabytes": size, "memory_mb": MEMORY_MB, "seconds": measured}
    print(f"{size:.1f} MB of text, {MEMORY_MB} MB of it in memory: {ratio['median']:.3f} of the speed from memory")
    print(f"({ratio['least']:.3f} to {ratio['most']:.3f}; target: {TARGET})")
    file = ResultsFile(arguments.results, "streaming", **content, speed_from_file_to_memory=ratio)
    print("written:", file.save())


if __name__ == "__main__":
    main()
