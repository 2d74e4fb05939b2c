"""What callers pass along with a model is checked once, for every function that reads or writes text with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax import (
    CharLSTM,
    Vocab,
    activations,
    beam_search,
    dynamic_score,
    generate,
    generate_text,
    init_params,
    score,
    score_pieces,
    unit_activations,
)
from charjax.config import SampleConfig
from charjax.errors import UserError
from charjax.generation.session import Session

VOCAB = Vocab.ascii()
MODEL = CharLSTM(VOCAB.size, hidden_dim=10, hidden_layers=2)
PARAMS = init_params(jax.random.key(0), MODEL)
IDS = VOCAB.encode("two flat whites and a mocha")


def written(params, ids):
    session = Session(MODEL, params, VOCAB, SampleConfig())
    session.read(ids)
    return np.concatenate(list(session.write_ids(9)))


def scored(params, ids, **options):
    return np.concatenate([piece.nats for piece in score_pieces(MODEL, params, [ids], **options)])


# Each takes (params, ids [N]) and returns an array.
CALLS = {
    "generate": lambda params, ids: generate(MODEL, params, np.asarray(ids)[None], key=jax.random.key(1), length=9),
    "generate_text": lambda params, ids: np.array(generate_text(MODEL, params, VOCAB, "a mocha", length=9)),
    "Session": written,
    "score": lambda params, ids: score(MODEL, params, np.asarray(ids)[None]),
    "score_pieces": scored,
    "score_pieces of streams": lambda params, ids: scored(params, ids, streams=2),
    "dynamic_score": lambda params, ids: dynamic_score(MODEL, params, ids).nats,
    "beam_search": lambda params, ids: beam_search(MODEL, params, ids, length=3, beam_width=2)[0],
    "activations": lambda params, ids: activations(MODEL, params, np.asarray(ids)[None]),
    "unit_activations": lambda params, ids: unit_activations(MODEL, params, np.asarray(ids)[None], [(0, 1)]),
}


@pytest.fixture(params=CALLS)
def call(request):
    return CALLS[request.param]


@pytest.fixture(params=[name for name in CALLS if name != "generate_text"])
def call_with_ids(request):
    return CALLS[request.param]


def changed(name, change):
    """Returns the parameters with a change to one of them."""
    layer, *rest = name.split(".")
    inner = {rest[0]: changed_leaf(PARAMS[layer][rest[0]], rest[1:], change)}
    return {**PARAMS, layer: {**PARAMS[layer], **inner}}


def changed_leaf(tree, rest, change):
    return change(tree) if not rest else {**tree, rest[0]: change(tree[rest[0]])}


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_parameters_of_another_dtype_are_converted(call, dtype):
    """The kernel would read them as float32."""
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), PARAMS)
    expected = call(jax.tree.map(lambda leaf: leaf.astype(np.float32), rounded), IDS)
    np.testing.assert_array_equal(call(rounded, IDS), expected)


def without(name):
    return {layer: leaves for layer, leaves in PARAMS.items() if layer != name}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"params": PARAMS}, r'pass variables\["params"\]'),
        (without("head"), "params has no head.bias, which this model needs"),
        (without("layer_1"), "params has no layer_1.cell."),
        ({**PARAMS, "layer_2": PARAMS["layer_1"]}, "params has layer_2.cell..*, which this model does not need"),
        (None, "params has no "),
        ([1.0], "params has no "),
        (changed("layer_0.cell.w_ih", lambda w: w[:-1]), r"layer_0.cell.w_ih with shape \(127, 40\), .* \(128, 40\)"),
        (changed("layer_1.cell.w_hh", lambda w: w.T), r"layer_1.cell.w_hh with shape \(40, 10\), .* \(10, 40\)"),
        (changed("head.bias", lambda b: b.astype(jnp.int32)), "head.bias with dtype int32, which is not floating"),
        (
            changed("head.bias", lambda b: np.asarray(b, ">f4")),
            "head.bias with dtype >f4, which JAX does not support; use",
        ),
        (
            changed("head.bias", lambda b: np.asarray(b, object)),
            "head.bias with dtype object, which JAX does not support",
        ),
        (
            changed("head.bias", lambda b: b.at[3].set(jnp.nan)),
            "parameter head.bias has values that are not finite; train the model again",
        ),
        (
            changed("layer_0.cell.bias", lambda b: b.at[3].set(-jnp.inf)),
            "layer_0.cell.bias has values that are not finite",
        ),
    ],
)
def test_parameters_of_another_model_are_refused(call, params, message):
    with pytest.raises(UserError, match=message):
        call(params, IDS)


def test_a_bias_of_minus_infinity_excludes_a_character():
    others = jnp.arange(VOCAB.size) != ord("e")
    params = changed("head.bias", lambda b: jnp.where(others, -jnp.inf, b))
    assert generate_text(MODEL, params, VOCAB, "a", length=5) == ["eeeee"]


def test_the_sum_of_large_parameters_may_overflow():
    params = changed("head.bias", lambda b: jnp.full_like(b, 3e38).at[:64].set(-3e38).at[0].set(3e38))
    generate_text(MODEL, params, VOCAB, "a", length=1)


@pytest.mark.parametrize(
    "ids",
    [
        IDS.astype(np.float32),
        np.array([1, 128]),
        np.array([1, -1]),
        np.array([1, 2**32], np.int64),
        IDS > 40,
        "mocha",
        np.array(3),
    ],
    ids=["float", "too large", "negative", "too large for int32", "bool", "str", "scalar"],
)
def test_ids_that_are_none_of_the_vocabularys_are_refused(call_with_ids, ids):
    with pytest.raises(UserError, match=r"must be (\[|in \[0, 128\))"):
        call_with_ids(PARAMS, ids)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64, jnp.int16])
def test_integers_of_any_width_are_read(call_with_ids, dtype):
    ids = jnp.asarray(IDS, dtype) if dtype is jnp.int16 else IDS.astype(dtype)
    np.testing.assert_array_equal(call_with_ids(PARAMS, ids), call_with_ids(PARAMS, IDS))


def test_a_row_without_its_batch_is_named():
    with pytest.raises(UserError, match=r"context must be \[B, P\] integers.*; pass ids\[None\] for a single row"):
        generate(MODEL, PARAMS, IDS, key=jax.random.key(0), length=3)
    with pytest.raises(UserError, match="all rows of the same length"):
        generate(MODEL, PARAMS, [[1, 2], [3]], key=jax.random.key(0), length=3)


def test_raw_keys_are_wrapped():
    """A raw key of two numbers is one key, also for a batch of two."""

    def sampled(key):
        return np.asarray(generate(MODEL, PARAMS, np.stack([IDS, IDS]), key=key, length=9))

    np.testing.assert_array_equal(sampled(jax.random.PRNGKey(7)), sampled(jax.random.key(7)))
    rows = jax.random.split(jax.random.key(3))
    np.testing.assert_array_equal(sampled(jax.random.key_data(rows)), sampled(rows))


@pytest.mark.parametrize("key", [None, 3, np.zeros(2), np.zeros((2, 3), np.uint32), jnp.zeros((), jnp.uint32)])
def test_what_is_no_key_is_refused(key):
    with pytest.raises(UserError, match=r"key must be a PRNG key, e.g. jax.random.key\(0\)"):
        generate(MODEL, PARAMS, IDS[None], key=key, length=3)


def test_context_lengths_are_integers():
    with pytest.raises(UserError, match="context_lengths must be 1 integers"):
        generate(MODEL, PARAMS, IDS[None], key=jax.random.key(0), length=3, context_lengths=[2.5])


def test_generation_may_be_traced():
    """Then there are no values to check."""

    @jax.jit
    def sample(params, context):
        return generate(MODEL, params, context, key=jax.random.key(0), length=9)

    np.testing.assert_array_equal(
        sample(PARAMS, IDS[None]), generate(MODEL, PARAMS, IDS[None], key=jax.random.key(0), length=9)
    )
