"""What a text that stays in its file costs: training on chunks of it against training on it in memory, in turn.

    python -m benchmarks.streaming
    python -m benchmarks.streaming --hidden-dim 128 --every 200

Two trainings (`fit`) take turns of so many steps, each in a process of its own, as in `benchmarks.saving`. One may hold
1 MB of a text of about 13 MB at once, the other as much as it likes. A ratio is that of a round's two speeds.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from benchmarks import machine
from benchmarks.saving import TEXT, Training, in_turn

COPIES = 12
MEMORY_MB = 1
TARGET = 0.95


def ratios(measured: list[dict[str, float]]) -> dict[str, float]:
    """The speed from the file over that from memory: median, least and most of the rounds' own."""
    each = [seconds["in memory"] / seconds["in its file"] for seconds in measured]
    return {"median": statistics.median(each), "least": min(each), "most": max(each)}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden-dim", type=int, default=512)
    parser.add_argument("--hidden-layers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=100)
    parser.add_argument("--every", type=int, default=20, help="steps of a turn")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--results", type=Path, default=machine.RESULTS, help="folder to write to")
    arguments = parser.parse_args()
    names = ("hidden_dim", "hidden_layers", "batch_size", "seq_len", "every")
    point = {name: getattr(arguments, name) for name in names}
    with tempfile.NamedTemporaryFile() as text:
        for _ in range(COPIES):
            text.write(TEXT.read_bytes())
        text.flush()
        trainings = {
            "in memory": Training({**point, "text": text.name, "memory_mb": 1000}, None),
            "in its file": Training({**point, "text": text.name, "memory_mb": MEMORY_MB}, None),
        }
        measured = in_turn(trainings, arguments.rounds)
        size = Path(text.name).stat().st_size / 1e6
    ratio = ratios(measured)
    content = {"sizes": point, "text_megabytes": size, "memory_mb": MEMORY_MB, "seconds": measured}
    path = machine.save("streaming", {**content, "speed_from_file_to_memory": ratio}, arguments.results)
    print(f"{size:.1f} MB of text of which {MEMORY_MB} MB may be held: {ratio['median']:.3f} of the speed from memory")
    print(f"({ratio['least']:.3f} to {ratio['most']:.3f}; to reach: {TARGET})")
    print("written:", path)


if __name__ == "__main__":
    main()
