"""How many characters per second the page of `charjax export --to html` writes in headless Chromium.

    python -m benchmarks.page
    python -m benchmarks.page --hidden-dim 128 --rounds 9

The weights are those of an untrained model: the page takes as long for each character whatever they are.
"""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax

from benchmarks.common.options import add_results, make_parser
from benchmarks.common.results import ResultsFile
from charjax import CharLSTM, Vocab, init_params, save_model
from charjax.export import write_html
from tests.helpers import chromium

TARGET = 2000
# Writes N characters after a context, from the first to the last -> milliseconds.
WRITE = """new Promise(done => {{
  const scroller = document.getElementById("scroller"), begin = performance.now();
  const look = () => rest.textContent.length >= {length} && scroller.getAttribute("aria-busy") === "false"
    && done(performance.now() - begin);
  new MutationObserver(look).observe(scroller, {{ attributes: true, childList: true, subtree: true }});
  document.getElementById("length").value = {length};
  document.getElementById("seed").value = {seed};
  document.getElementById("settings").dispatchEvent(new Event("input"));
}})"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = make_parser("page", __doc__)
    parser.add_argument("--hidden-dim", type=int, default=256)
    parser.add_argument("--hidden-layers", type=int, default=2)
    parser.add_argument("--length", type=int, default=5000, help="characters to write (default: 5000)")
    parser.add_argument("--rounds", type=int, default=5, help="times to write them, with other seeds (default: 5)")
    add_results(parser)
    arguments = parser.parse_args(argv)
    if chromium.PROGRAM is None:
        parser.error("there is no chromium; install it, e.g. apt-get install chromium")
    vocab = Vocab.ascii()
    model = CharLSTM(vocab.size, arguments.hidden_dim, arguments.hidden_layers)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        save_model(folder / "model", model, init_params(jax.random.key(0), model), vocab)
        page_file = folder / "page.html"
        write_html(folder / "model", page_file, context="The ")
        size = page_file.stat().st_size
        with chromium.started(folder / "profile") as page:
            version = page.call("Browser.getVersion")["product"]
            page.open(page_file)
            milliseconds = [
                page.run(WRITE.format(length=arguments.length, seed=seed)) for seed in range(1, arguments.rounds + 1)
            ]
    speeds = [1000 * arguments.length / one for one in milliseconds]
    median = statistics.median(speeds)
    sizes = {"hidden_dim": arguments.hidden_dim, "hidden_layers": arguments.hidden_layers, "length": arguments.length}
    content = {"browser": version, "sizes": sizes, "page_bytes": size, "chars_per_second": speeds, "median": median}
    print(f"{median:,.0f} characters/s ({min(speeds):,.0f} to {max(speeds):,.0f}; target: {TARGET:,}) in {version}")
    print(f"a page of {size / 1e6:.2f} MB")
    print("written:", ResultsFile(arguments.results, "page", **content).save())


if __name__ == "__main__":
    main()
