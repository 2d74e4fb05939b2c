"""What saving in the background costs: training with checkpoints against training without, in turn.

    python -m benchmarks.saving
    python -m benchmarks.saving --hidden-dim 128 --batch-size 32 --rounds 3

Two trainings (`fit`) of H = 512, L = 2, B = 64, T = 100 take turns of 20 steps, each in a process of its own. One of
them saves a checkpoint at the beginning of each turn and writes it in the background. A ratio is that of a round's
two speeds. What a save does after its turn is not in that turn's time: turns should be longer than saves.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.fits import make_fit_parser, make_training, ratio_of_speeds, sizes_of, take_turns
from benchmarks.common.problem import TEXT
from benchmarks.common.results import ResultsFile

TARGET = 0.95


def checkpoint_megabytes(run: Path) -> float:
    """Returns the size of the latest checkpoint on disk; folders being written or removed have other names."""
    latest = max(
        (path for path in (run / "checkpoints").iterdir() if path.name.isdigit()), key=lambda path: int(path.name)
    )
    return sum(path.stat().st_size for path in latest.rglob("*") if path.is_file()) / 1e6


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = make_fit_parser("saving", __doc__, hidden_dim=512, every=20, rounds=9)
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--folder", type=Path, help="where the checkpoints go (default: the system's temporary folder)")
    arguments = parser.parse_args(argv)
    sizes = sizes_of(arguments)
    with tempfile.TemporaryDirectory(dir=arguments.folder, ignore_cleanup_errors=True) as folder:
        run = Path(folder) / "run"
        trainings = [
            make_training("without", sizes, arguments.text),
            make_training("saving", sizes, arguments.text, out=run),
        ]
        measured = take_turns(trainings, arguments.rounds)
        size = checkpoint_megabytes(run)
    ratio = ratio_of_speeds(measured, "saving", "without")
    content = {"sizes": sizes, "checkpoint_megabytes": size, "seconds": measured, "speed_saving_to_without": ratio}
    print(f"checkpoints of {size:.1f} MB every {sizes['every']} steps: {ratio['median']:.3f} of the speed without")
    print(f"({ratio['least']:.3f} to {ratio['most']:.3f}; target: {TARGET})")
    print("written:", ResultsFile(arguments.results, "saving", **content).save())


if __name__ == "__main__":
    main()
