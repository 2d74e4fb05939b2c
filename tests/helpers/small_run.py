"""A small training run that tests share."""

import jax
import jax.numpy as jnp
import numpy as np

from charjax.config import TrainConfig
from charjax.data.corpus import Corpus
from charjax.distributed.mesh import make_mesh
from charjax.model import CharLSTM
from charjax.runs.checkpoint_store import save_checkpoint
from charjax.runs.compatibility import describe_run
from charjax.runs.metadata import Progress
from charjax.train_state import init_train_state
from charjax.training.optimizer import make_optimizer

TEXT = "The barista brews a flat white. Grandmother drinks three cups of mocha at midnight.\n" * 40
SMALL = TrainConfig(batch_size=8, seq_len=16, epochs=2, learning_rate=0.01, eval_every=12, sample_length=20)


def small_corpus(**options):
    return Corpus.from_text(TEXT, **options)


def small_model(corpus, **options):
    return CharLSTM(corpus.vocab.size, **{"hidden_dim": 12, "hidden_layers": 2, "dropout": 0.2, **options})


def save_run(folder, corpus, model, params=None):
    """Saves a run that was not trained; `params` takes the place of the parameters, or makes others of them."""
    mesh = make_mesh(jax.devices()[:1])
    state = init_train_state(jax.random.key(1), model, make_optimizer(SMALL, 9), batch_size=1, mesh=mesh)
    if params is not None:
        state = state.replace(params=params(state.params) if callable(params) else params)
    save_checkpoint(folder, state, describe_run(model, corpus, SMALL), Progress(step=1))
    return folder


def host(tree):
    """Every array of a tree as NumPy, PRNG keys as their bits."""
    return [
        np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        for leaf in jax.tree.leaves(tree)
    ]


def assert_same(ours, theirs):
    """Checks that two trees are equal bit for bit."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for mine, other in zip(host(ours), host(theirs), strict=True):
        assert mine.dtype == other.dtype
        assert mine.tobytes() == other.tobytes()
