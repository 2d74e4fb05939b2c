"""Keeps a tiny run of this version for tests/runs/test_earlier_versions.py, in VERSION.tar.xz beside this file.

    python tests/data/runs/keep.py VERSION

The archive holds a text, the run after one pass over it, and in expected.json what this version makes of them: the
logits of the run's model, and the validation loss and the logits after a second pass.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from charjax import CharLSTM, Corpus, fit, init_carry, load_model, make_mesh

TEXT = "a flat white, please. " * 40


def logits(run):
    """The logits of a run's model after each character of a context, as lists."""
    model, params, vocab = load_model(run)
    found, _ = model.apply({"params": params}, vocab.encode("please.")[None], init_carry(model, 1))
    return np.asarray(found)[0].tolist()


def keep(folder):
    """Writes what the archive holds."""
    corpus = Corpus.from_text(TEXT, vocab="chars")
    model = CharLSTM(corpus.vocab.size, hidden_dim=4, hidden_layers=1, dtype="float32")
    options = {"batch_size": 4, "seq_len": 16, "learning_rate": 0.02, "schedule": "constant", "sample_length": 20}
    run, later = folder / "run", folder.with_name("later")
    fit(model, corpus, mesh=make_mesh(jax.devices()[:1]), out=run, epochs=1, **options)
    shutil.copytree(run, later)
    fit(model, corpus, mesh=make_mesh(jax.devices()[:1]), out=later, resume=True, epochs=2, **options)
    loss = json.loads((later / "metrics.jsonl").read_text().splitlines()[-1])["val_loss"]
    expected = {"logits": logits(run), "loss after a second pass": loss, "logits after a second pass": logits(later)}
    shutil.rmtree(run / "checkpoints" / "0")  # half of the size
    (folder / "expected.json").write_text(json.dumps(expected))
    (folder / "coffee.txt").write_text(TEXT)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "kept")
        folder.mkdir()
        keep(folder)
        shutil.make_archive(str(Path(__file__).with_name(sys.argv[1])), "xztar", folder)
