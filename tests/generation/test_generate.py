"""Sampling: the jitted loop writes what a naive loop would, from the right distribution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.kernel_steps import check_sampling, check_steps

from charjax import generate as generate_function
from charjax.config import SampleConfig
from charjax.data.vocab import Vocab, encode_context
from charjax.distributed.mesh import make_mesh, put_replicated
from charjax.errors import UserError
from charjax.generation.decoder import make_decoder
from charjax.generation.generate import _generate, generate_text
from charjax.generation.native_decoder import NativeDecoder
from charjax.generation.xla_decoder import XlaDecoder
from charjax.model import CharLSTM, init_carry, init_params
from charjax.ops.lstm.native.generation import library_for_generation
from charjax.ops.lstm.native.libraries import STEP_DTYPES, libraries

VOCAB = Vocab.ascii()
MODEL = CharLSTM(VOCAB.size, hidden_dim=10, hidden_layers=2, dropout=0.5)
PARAMS = init_params(jax.random.key(0), MODEL)
generate = functools.partial(generate_function, MODEL, PARAMS)
# By the native decoder, if the kernel is compiled, and by XLA's.
by_both = pytest.mark.parametrize("model", [MODEL, MODEL.clone(implementation="scan")], ids=["native", "xla"])
needs_kernel = pytest.mark.skipif(library_for_generation() is None, reason="the native kernel is not compiled here")


def context(*texts):
    return np.stack([VOCAB.encode(text) for text in texts])


# ---- the text


@by_both
def test_argmax_is_that_of_reading_the_whole_text_again_for_each_character(model):
    ids = context("coffee", "mocha.")
    written = generate_function(model, PARAMS, ids, key=jax.random.key(1), length=12, temperature=0)
    # One shape for all steps: what follows does not change the logits of what came before.
    read = jax.jit(lambda ids: MODEL.apply({"params": PARAMS}, ids, init_carry(MODEL, 2))[0])
    for n in range(12):
        logits = read(np.pad(ids, ((0, 0), (0, 12 - n))))[:, ids.shape[1] - 1]
        ids = np.concatenate([ids, np.argmax(logits, axis=-1)[:, None]], axis=1)
    np.testing.assert_array_equal(written, ids[:, 6:])


@by_both
def test_a_row_does_not_depend_on_its_neighbours(model):
    write = functools.partial(generate_function, model, PARAMS, key=jax.random.key(1), length=30)
    single, among = write(context("coffee")), write(context("coffee", "mocha.", "coffee"))
    np.testing.assert_array_equal(among[0], single[0])
    assert not np.array_equal(among[0], among[2])


@needs_kernel
@pytest.mark.parametrize(
    ("hidden", "weights"), [(10, "float32"), (64, "bfloat16"), pytest.param(64, "int8", marks=pytest.mark.slow)]
)
def test_a_text_is_the_same_among_a_thousand(hidden, weights):
    model = CharLSTM(VOCAB.size, hidden_dim=hidden, hidden_layers=2)
    params = init_params(jax.random.key(0), model)
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(32, 127, rng.integers(1, 40)))) for _ in range(1000)]
    temperatures = rng.uniform(0, 2, 1000).tolist()
    write = functools.partial(generate_text, model, params, VOCAB, length=20, top_p=0.95, weights=weights)
    many = write(texts, seed=list(range(1000)), temperature=temperatures)
    assert len(set(many)) > 900
    for n in (0, 1, 500, 999):
        assert write(texts[n], seed=n, temperature=temperatures[n]) == [many[n]]


@by_both
def test_contexts_of_different_lengths(model):
    write = functools.partial(generate_text, model, PARAMS, VOCAB, length=15, temperature=0)
    texts = ["a", "coffee", "a long context, much longer than the others", ""]
    assert write(texts) == [write(text)[0] for text in texts]


@needs_kernel
def test_both_decoders_write_the_same():
    options = {"key": jax.random.key(3), "length": 40, "temperature": [0.7, 1.0], "top_k": 20, "min_p": 0.01}
    ids = generate_function(MODEL.clone(implementation="scan"), PARAMS, context("coffee", "mocha."), **options)
    np.testing.assert_array_equal(ids, generate(context("coffee", "mocha."), **options))


@pytest.mark.parametrize("character", [-1, -2, 128])
@by_both
def test_an_id_outside_the_vocabulary_gives_nan(model, character):
    decoder = make_decoder(model)
    ids = np.array([[1, character, 2], [1, 2, 3]])
    after = decoder.prefill(decoder.pack(PARAMS), decoder.init(2), ids)
    assert np.isnan(after.carry[-1].h[0]).all()
    assert np.isfinite(after.carry[-1].h[1]).all()


def test_a_seed_always_writes_the_same_text_and_another_seed_another():
    write = functools.partial(generate_text, MODEL, PARAMS, VOCAB, "a", length=40)
    assert write(seed=1) == write(seed=1)
    assert write(seed=1) != write(seed=2)
    assert write(seed=1, num_samples=3)[0] == write(seed=1)[0]
    assert len(set(write(seed=1, num_samples=3))) == 3


@pytest.mark.parametrize("length", [0, 1, 17])
def test_lengths(length):
    assert generate(context("a"), key=jax.random.key(0), length=length).shape == (1, length)
    assert len(generate_text(MODEL, PARAMS, VOCAB, "", length=length)[0]) == length


def test_an_empty_context_starts_from_the_heads_bias():
    params = jax.tree.map(jnp.copy, PARAMS)
    params["head"]["bias"] = params["head"]["bias"].at[65].set(50.0)
    ids = generate_function(MODEL, params, np.zeros((3, 0), np.uint8), key=jax.random.key(0), length=1)
    assert ids.tolist() == [[65]] * 3


def test_an_empty_text_starts_after_a_line_break():
    assert encode_context(VOCAB, "").tolist() == [10]
    assert encode_context(Vocab.from_text("ab"), "").tolist() == []


def test_a_stop_string_ends_a_text():
    (whole,) = generate_text(MODEL, PARAMS, VOCAB, "ab", length=50)
    stop = whole[20:23]
    (cut,) = generate_text(MODEL, PARAMS, VOCAB, "ab", length=50, stop=stop)
    assert cut == whole[: whole.index(stop) + 3]
    for wrong in ("", "é"):
        with pytest.raises(UserError, match="cannot be used"):
            generate_text(MODEL, PARAMS, VOCAB, "ab", stop=wrong)


# ---- the distribution


LOGITS = [2.0, -1.0, 0.5, 1.5, 0.0, -3.0, 1.4, 0.9]
FILTERS = [
    {},
    {"top_k": 3},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"top_k": 4, "top_p": 0.8},
    {"top_k": 5, "top_p": 0.9, "min_p": 0.15},
    {"top_k": 100, "top_p": 1.0, "min_p": 0.0},
    {"top_k": 1, "top_p": 0.01, "min_p": 1.0},
]


def reference(logits, temperature, top_k, top_p, min_p):
    """The distribution to sample from, in NumPy and float64: temperature, then top-k, top-p and min-p."""
    scaled = np.asarray(logits, np.float64) / temperature
    order = np.argsort(-scaled, kind="stable")
    probs = np.exp(scaled - scaled.max())
    if top_k is not None:
        probs[order[top_k:]] = 0
    probs /= probs.sum()
    if top_p is not None:
        before = np.cumsum(probs[order]) - probs[order]
        probs[order[before >= top_p]] = 0
    if min_p is not None:
        probs[probs < min_p * probs.max()] = 0
    return probs / probs.sum()


def counts_of(logits, config, count, model):
    """How often a model that always predicts `logits` writes each character, of `count` samples."""
    size = len(logits)
    constant = CharLSTM(size, hidden_dim=4, hidden_layers=1, implementation=model.implementation)
    shapes = jax.eval_shape(functools.partial(init_params, model=constant), jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    params["head"]["bias"] = np.asarray(logits, np.float32)
    options = {name: getattr(config, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    rows = np.zeros((1000, 1), np.int32)
    ids = generate_function(constant, params, rows, key=jax.random.key(7), length=count // 1000, **options)
    return np.bincount(np.asarray(ids).ravel(), minlength=size)


@by_both
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_a_hundred_thousand_samples_follow_the_distribution(model, temperature, options):
    """Pearson's chi-square test, at a level that one of a million right programs fails."""
    config = SampleConfig(temperature=temperature, **options)
    count = 100_000
    counts = counts_of(LOGITS, config, count, model)
    assert counts.sum() == count
    expected = reference(LOGITS, temperature, config.top_k, config.top_p, config.min_p) * count
    assert (counts[expected == 0] == 0).all()
    kept = expected > 0
    statistic = np.sum((counts[kept] - expected[kept]) ** 2 / expected[kept])
    freedom = kept.sum() - 1
    assert freedom == 0 or jax.scipy.special.gammaincc(freedom / 2, statistic / 2) > 1e-6


def test_the_test_of_samples_detects_a_wrong_distribution():
    counts = counts_of(LOGITS, SampleConfig(temperature=1.1), 100_000, MODEL)
    expected = reference(LOGITS, 1.0, None, None, None) * 100_000
    assert jax.scipy.special.gammaincc(3.5, np.sum((counts - expected) ** 2 / expected) / 2) < 1e-6


FINITE = [{3: 1.0, 5: 1.0}, {}]
NOT_FINITE = [{0: -np.inf, 2: 4.0}, {4: np.nan}, {7: np.inf}, {...: -np.inf}]


@pytest.mark.parametrize(
    ("values", "options"),
    # What a filter makes of logits that are not finite is not specified.
    [(values, {}) for values in FINITE + NOT_FINITE] + [(values, f) for values in FINITE for f in FILTERS[1:4]],
)
@by_both
def test_argmax_is_that_of_numpy_even_among_equal_or_infinite_logits(model, values, options, monkeypatch):
    # Parameters that are not finite are refused, but logits of finite ones may overflow.
    monkeypatch.setattr("charjax.generation.generate.checked_params", lambda model, params: params)
    logits = np.full(8, -1.0, np.float32)
    for index, value in values.items():
        logits[index] = value
    counts = counts_of(logits, SampleConfig(temperature=0, **options), 1000, model)
    assert counts[jnp.argmax(logits)] == 1000


def test_excluding_characters_does_not_change_the_other_samples():
    write = functools.partial(generate, np.tile(context("coffee"), (500, 1)), key=jax.random.key(1), length=1)
    free, filtered = np.asarray(write()), np.asarray(write(top_k=40))
    kept = np.isin(free, np.unique(filtered))
    assert kept.any()
    assert not kept.all()
    assert (free == filtered)[kept].mean() > 0.9


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-30}, {"min_p": 1.0}]
)
def test_the_only_character_left_is_the_most_likely(options):
    greedy = generate(context("coffee"), key=jax.random.key(1), length=20, temperature=0)
    ids = generate(context("coffee"), key=jax.random.key(2), length=20, **options)
    np.testing.assert_array_equal(ids, greedy)


@needs_kernel
def test_the_kernel_samples_as_xla_does():
    check_sampling(library_for_generation())


# ---- forms of the kernel, formats of the weights, kinds of keys


def name_of(library):
    return library.instructions


@pytest.mark.slow
@pytest.mark.parametrize("dtype", STEP_DTYPES)
@pytest.mark.parametrize("library", libraries(), ids=name_of)
@pytest.mark.parametrize(("batch", "hidden"), [(1, 10), (1, 40), (7, 33), (70, 16)])
def test_every_form_of_the_kernel_takes_the_same_steps(batch, hidden, library, dtype):
    """All that this CPU runs, for the three ways in which threads share the work."""
    check_steps(library, dtype, batch, hidden)


@pytest.mark.parametrize("dtype", STEP_DTYPES)
@pytest.mark.parametrize("library", [*libraries()[:1], *libraries()[1:][-1:]], ids=name_of)
@pytest.mark.parametrize(("batch", "hidden"), [(1, 40), (7, 33)])
def test_the_best_and_the_plainest_form_of_the_kernel_take_the_same_steps(batch, hidden, library, dtype):
    check_steps(library, dtype, batch, hidden)


@needs_kernel
def test_int8_weights_give_nearly_the_same_state():
    model = CharLSTM(VOCAB.size, hidden_dim=100, hidden_layers=2)
    params = init_params(jax.random.key(0), model)
    ids = np.random.default_rng(0).integers(0, 128, (3, 30))
    decoders = (make_decoder(model, dtype) for dtype in ("float32", "int8"))
    exact, rounded = (decoder.prefill(decoder.pack(params), decoder.init(3), ids) for decoder in decoders)
    for one, other in zip(jax.tree.leaves(exact.carry), jax.tree.leaves(rounded.carry), strict=True):
        np.testing.assert_allclose(one, other, atol=0.05)
        assert not np.array_equal(one, other)


@pytest.mark.parametrize("implementation", ["scan", "flax", None])
def test_int8_needs_the_kernel(implementation, monkeypatch):
    monkeypatch.setattr("charjax.generation.decoder.library_for_generation", lambda: None)
    model = MODEL.clone(implementation=implementation)
    with pytest.raises(NotImplementedError, match="int8 weights require the native kernel"):
        generate_function(model, PARAMS, context("a"), key=jax.random.key(0), length=1, weights="int8")


@needs_kernel
def test_the_model_chooses_the_decoder():
    kinds = {None: NativeDecoder, "native": NativeDecoder, "scan": XlaDecoder, "mosaic_gpu": XlaDecoder}
    for implementation, kind in kinds.items():
        assert type(make_decoder(MODEL.clone(implementation=implementation))) is kind


def test_mosaic_gpu_has_a_decoder_of_its_own_on_hopper():
    h100 = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("data",), abstract_device=h100)):
        names = {name: type(make_decoder(MODEL.clone(implementation=name))).__name__ for name in ("mosaic_gpu", None)}
    assert names == {"mosaic_gpu": "MosaicDecoder", None: "XlaDecoder"}


def test_parameters_that_every_device_has_are_used_on_one():
    everywhere = put_replicated(PARAMS, make_mesh())
    options = {"key": jax.random.key(3), "length": 9}
    ids = generate_function(MODEL, everywhere, context("coffee"), **options)
    assert len(ids.sharding.device_set) == 1
    np.testing.assert_array_equal(ids, generate(context("coffee"), **options))


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_of_other_kinds(impl):
    write = functools.partial(generate, context("coffee", "coffee"), length=40)
    ids = write(key=jax.random.key(1, impl=impl))
    np.testing.assert_array_equal(ids, write(key=jax.random.key(1, impl=impl)))
    assert not np.array_equal(ids[0], ids[1])
    assert not np.array_equal(ids, write(key=jax.random.key(2, impl=impl)))


@by_both
def test_other_lengths_and_settings_do_not_recompile(model):
    write = functools.partial(generate_function, model, PARAMS, context("coffee"))
    write(key=jax.random.key(0), length=33, top_p=0.9)
    write(key=jax.random.key(0), length=33)
    before = _generate._cache_size()
    for length, options in (
        (64, {"top_k": 3}),
        (50, {"top_p": 0.1, "temperature": 1.2}),
        (49, {"min_p": 0.1, "temperature": 0.5}),
        (34, {"temperature": 0}),
    ):
        write(key=jax.random.key(1), length=length, **options)
    assert _generate._cache_size() == before


@needs_kernel
def test_other_lengths_of_the_context_do_not_recompile_the_kernels_call():
    write = functools.partial(generate, key=jax.random.key(0), length=5)
    write(context("abc"))
    before = _generate._cache_size()
    write(context("a"))
    write(context("sixteen at most!"))
    assert _generate._cache_size() == before


# ---- mistakes


def test_a_context_outside_the_vocabulary_is_named():
    with pytest.raises(UserError, match=r"'é' \(U\+00E9\)"):
        generate_text(MODEL, PARAMS, VOCAB, "café")


@pytest.mark.parametrize(
    "options",
    [
        *[{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": 0}, {"length": -1}, {"min_p": -0.1}],
        *[{"min_p": 2}, {"weights": "int4"}, {"temperature": [1.0, 2.0]}, {"temperature": [-1.0]}],
        *[{"context_lengths": [2]}, {"context_lengths": [-1]}, {"context_lengths": [1, 1]}],
    ],
    ids=str,
)
def test_settings_out_of_range_are_named(options):
    with pytest.raises(UserError, match=next(iter(options))):
        generate(context("a"), key=jax.random.key(0), **{"length": 3, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"context": ["a", "b"], "seed": [1]},
        {"seed": [1, 2], "num_samples": 3},
        {"temperature": [1.0, 1.0], "context": ["a"]},
        {"context": []},
        {"seed": []},
        {"seed": [-1]},
        {"seed": None},
        {"num_samples": 0},
    ],
    ids=str,
)
def test_lists_that_do_not_agree(options):
    with pytest.raises(UserError):
        generate_text(MODEL, PARAMS, VOCAB, **options)


def test_seeds_may_be_scalars_of_numpy_and_jax():
    expected = generate_text(MODEL, PARAMS, VOCAB, seed=3, length=9)
    assert generate_text(MODEL, PARAMS, VOCAB, seed=np.int64(3), length=np.int64(9)) == expected
    assert generate_text(MODEL, PARAMS, VOCAB, seed=jnp.int32(3), length=9) == expected
