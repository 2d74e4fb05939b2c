"""The kernel that samples a character and computes layer 0's gates, interpreted on a CPU, and its decoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

from charjax.array_types import LSTMCarry
from charjax.config import SampleConfig
from charjax.generation.decoder import make_decoder
from charjax.generation.experimental.mosaic_decoder import MosaicDecoder
from charjax.generation.sampling import Sampling, make_settings
from charjax.generation.xla_decoder import XlaDecoder
from charjax.model import CharLSTM, init_params
from charjax.ops.lstm.experimental.mosaic_gpu import sample_step
from charjax.ops.lstm.single_step import StepState, first_layer, logits

pytestmark = pytest.mark.slow

INTERPRET = InterpretGPUParams()
H100 = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")


@pytest.fixture
def for_a_gpu():
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("data",), abstract_device=H100)):
        yield


def make(batch, vocab, hidden, *, characters=3, summands=2, dtype="bfloat16"):
    """Padded weights, a padded state and padded noise; the logits are small integers."""
    rng = np.random.default_rng(0)
    model = CharLSTM(vocab, hidden_dim=hidden, hidden_layers=2, implementation="scan", dtype=dtype)
    weights = sample_step.pad_weights(XlaDecoder(model, dtype).pack(init_params(jax.random.key(0), model)).steps)
    widths = [kernel.shape[1] for kernel in weights.kernels]
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    carry = sample_step.pad_carry(tuple(LSTMCarry(normal(batch, hidden), normal(batch, hidden)) for _ in range(2)))
    products = [normal(summands, batch, width) for width in widths]
    products[-1] = jnp.round(2 * products[-1])
    noise = sample_step.pad_noise(jnp.asarray(rng.gumbel(size=(characters, batch, vocab)), jnp.float32))
    return weights, StepState(carry, tuple(products)), noise


interpreted = jax.jit(functools.partial(sample_step.choose, interpret=INTERPRET))


@jax.jit
def reference(weights, state, noise, number, temperature):
    vocab = weights.table.shape[0] - 1
    scores = logits(weights, state)[:, :vocab] + temperature[:, None] * noise[number - 1, :, :vocab]
    ids = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    first = first_layer(weights, state, ids)
    return ids, first, first.h.astype(weights.kernels[0].dtype)


def agrees(weights, state, noise, number, temperature):
    arguments = weights, state, noise, jnp.int32(number), jnp.full(noise.shape[1], temperature, jnp.float32)
    found, right = interpreted(*arguments), reference(*arguments)
    np.testing.assert_array_equal(found[0], right[0])
    assert found[0].dtype == jnp.int32
    for one, other in zip(found[1], right[1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert found[2].dtype == weights.kernels[0].dtype
    np.testing.assert_array_equal(found[2], found[1].h.astype(found[2].dtype))
    return found[0]


@pytest.mark.parametrize(
    ("batch", "vocab", "hidden", "options"),
    [
        (3, 65, 128, {}),
        (1, 128, 512, {"summands": 1}),
        (1, 200, 512, {"dtype": "float32", "characters": 1}),
        (5, 256, 10, {"characters": 1}),
    ],
)
def test_it_equals_the_reference(batch, vocab, hidden, options):
    weights, state, noise = make(batch, vocab, hidden, **options)
    ids = [agrees(weights, state, noise, number, 1.3) for number in sample_step.numbers(len(noise))]
    assert len(ids) == 1 or len(np.unique(ids)) > 1


def test_the_first_of_equal_scores_is_chosen():
    weights, state, noise = make(7, 200, 10)
    rows = np.asarray(logits(weights, state))[:, :200]
    assert ((rows == rows.max(axis=1, keepdims=True)).sum(axis=1) > 1).any()
    agrees(weights, state, noise, 1, 0.0)


@pytest.mark.parametrize(
    "values",
    [
        {3: -0.0, 5: 0.0},
        {3: 0.0, 5: -0.0},
        {5: np.nan, 7: np.inf, 9: np.nan},
        {5: -np.nan},
        {2: np.inf, 4: np.inf},
        {...: -np.inf},
        {...: np.nan},
        {64: 1.0},
    ],
)
def test_float_bits_rank_like_numbers(values):
    weights, state, noise = make(1, 65, 10, summands=1)
    row = np.full(128, -3.0, np.float32)
    for place, value in values.items():
        row[place] = value
    top = state.products[-1].at[0, 0, -128:].set(row)
    agrees(weights, state._replace(products=(state.products[0], top)), noise, 1, 0.0)


@pytest.mark.parametrize(("hidden", "length"), [(10, 0), (10, 17), (128, 3)])
def test_texts_are_those_of_the_xla_decoder(hidden, length):
    model = CharLSTM(65, hidden_dim=hidden, hidden_layers=2, implementation="scan", dtype="float32")
    params = init_params(jax.random.key(0), model)
    settings = make_settings(SampleConfig(), 3, [0.8, 0.0, 1.5])
    keys, context = jax.random.split(jax.random.key(2), 3), jax.random.randint(jax.random.key(1), (3, 4), 0, 65)
    results = []
    for decoder in (MosaicDecoder(model, "float32", interpret=INTERPRET), XlaDecoder(model, "float32")):
        weights = decoder.pack(params)
        state = decoder.prefill(weights, decoder.init(3), context)
        sampling = Sampling(keys, jnp.int32(0), settings)
        results.append(decoder.write(weights, state, sampling, jnp.int32(length), capacity=32, filtered=False))
    (after, ids), (right_after, right_ids) = results
    assert ids.shape == (3, 32)
    np.testing.assert_array_equal(ids, right_ids)
    for one, other in zip(jax.tree.leaves(after), jax.tree.leaves(right_after), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.usefixtures("for_a_gpu")
@pytest.mark.parametrize(("filtered", "kernels"), [(False, True), (True, False)])
def test_what_lowers_for_a_gpu(filtered, kernels):
    model = CharLSTM(65, hidden_dim=10, hidden_layers=2, implementation="mosaic_gpu", dtype="bfloat16")
    decoder = make_decoder(model)
    assert isinstance(decoder, MosaicDecoder)

    def shapes():
        params = init_params(jax.random.key(0), model)
        settings, keys = make_settings(SampleConfig(), 2), jax.random.split(jax.random.key(0), 2)
        return decoder.pack(params), decoder.init(2), Sampling(keys, jnp.int32(0), settings), jnp.int32(20)

    traced = MosaicDecoder.write.trace(decoder, *jax.eval_shape(shapes), capacity=32, filtered=filtered)
    assert ("@mosaic_gpu_v2" in traced.lower(lowering_platforms=("cuda",)).as_text()) == kernels


@pytest.mark.usefixtures("for_a_gpu")
@pytest.mark.parametrize("implementation", [None, "wavefront"])
def test_other_implementations_do_without_the_kernel(implementation):
    assert type(make_decoder(CharLSTM(65, implementation=implementation))) is XlaDecoder
