"""A model two of whose units were made by hand to follow something, and a text for them."""

import jax
import jax.numpy as jnp
import numpy as np

from charjax.analysis.activations import Unit
from charjax.model import CharLSTM, init_params

LATCH, COUNTER = Unit(0, 1), Unit(0, 3)
HIDDEN = 5
OPEN, SHUT = 20.0, -20.0
PROSE = (
    'He said "so be it" and left.\nThe other (he was 40) did not,\n\n"Nor did I", [Aside] he thinks.\n  Then: "No."\n'
)


def hand_made(vocab, *, sign=1):
    """A layer of units that forget all at once, but for LATCH, 1 between double quotes, and COUNTER, of the line.

    Args:
        vocab: the characters; it has the double quote and the line break.
        sign: -1 turns LATCH over.
    """
    model = CharLSTM(vocab.size, hidden_dim=HIDDEN, hidden_layers=1)
    params = init_params(jax.random.key(0), model)
    quote, newline = vocab.encode('"\n')
    # Gates i, f, g, o along the second axis.
    w_ih = np.zeros((vocab.size, 4, HIDDEN), np.float32)
    w_hh = np.zeros((HIDDEN, 4, HIDDEN), np.float32)
    bias = np.zeros((4, HIDDEN), np.float32)
    bias[1] = SHUT
    w_ih[:, 0] = np.random.default_rng(0).normal(size=(vocab.size, HIDDEN))
    w_ih[:, 2] = np.random.default_rng(1).normal(size=(vocab.size, HIDDEN))
    # A quote turns the latch over: from about 0 or -1 to 1, from 1 to -1. All else leaves it as it is.
    latch = LATCH.unit
    w_ih[:, :, latch] = 0.0
    w_ih[:, 0, latch], w_ih[:, 1, latch], bias[:, latch] = SHUT, OPEN, 0.0
    w_ih[quote, :, latch] = OPEN, SHUT, sign * 2.0, OPEN
    w_hh[latch, 2, latch] = -10.0
    w_ih[:, 3, latch] = OPEN
    # The counter adds 0.01 for each character, and a line break clears it.
    counter = COUNTER.unit
    w_ih[:, :, counter] = 0.0
    w_ih[:, 0, counter], w_ih[:, 1, counter], w_ih[:, 2, counter], bias[:, counter] = OPEN, OPEN, 0.01, 0.0
    w_ih[newline, :, counter] = SHUT, SHUT, 0.0, OPEN
    cell = {
        "w_ih": jnp.asarray(w_ih.reshape(vocab.size, -1)),
        "w_hh": jnp.asarray(w_hh.reshape(HIDDEN, -1)),
        "bias": jnp.asarray(bias.reshape(-1)),
    }
    return model, {**params, "layer_0": {"cell": cell}}
