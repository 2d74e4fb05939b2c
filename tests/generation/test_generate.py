"""Sampling: the jitted loop writes what a naive one would, and draws as it should."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax import generate as generate_function
from charjax.array_types import LSTMCarry
from charjax.config import SampleConfig
from charjax.data.vocab import Vocab, encode_context
from charjax.distributed.mesh import make_mesh, put_replicated
from charjax.errors import UserError
from charjax.generation.decode import arrange, decode, init_state, read
from charjax.generation.generate import _generate, generate_text
from charjax.generation.sampling import Choice, choose, draw_noise, make_choice
from charjax.model import CharLSTM, init_carry, init_params, layer_weights
from charjax.ops.lstm.native import STEP_DTYPES, libraries
from charjax.ops.lstm.native.steps import DRAW, library_for_steps, pack, take_steps

VOCAB = Vocab.ascii()
MODEL = CharLSTM(VOCAB.size, hidden_dim=10, hidden_layers=2, dropout=0.5)
PARAMS = init_params(jax.random.key(0), MODEL)
# By the kernel where there is one, and by XLA.
MODELS = [MODEL, MODEL.clone(implementation="scan")]
generate = functools.partial(generate_function, MODEL, PARAMS)
by_both = pytest.mark.parametrize("model", MODELS, ids=["kernel", "xla"])


def context(*texts):
    return np.stack([VOCAB.encode(text) for text in texts])


@by_both
def test_argmax_is_that_of_reading_the_whole_text_anew_for_each_character(model):
    ids = context("coffee", "mocha.")
    written = generate_function(model, PARAMS, ids, key=jax.random.key(1), length=12, temperature=0)
    for _ in range(12):
        logits, _ = MODEL.apply({"params": PARAMS}, ids, init_carry(MODEL, 2))
        ids = np.concatenate([ids, np.argmax(logits[:, -1], axis=-1)[:, None]], axis=1)
    np.testing.assert_array_equal(written, ids[:, 6:])


@by_both
def test_a_row_does_not_depend_on_its_neighbours(model):
    write = functools.partial(generate_function, model, PARAMS, key=jax.random.key(1), length=30)
    alone, among = write(context("coffee")), write(context("coffee", "mocha.", "coffee"))
    np.testing.assert_array_equal(among[0], alone[0])
    assert not np.array_equal(among[0], among[2])


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("hidden", [10, 64])
def test_a_text_is_the_same_among_a_thousand(hidden, weights):
    if library_for_steps() is None:
        pytest.skip("no kernel on this machine")
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


@by_both
def test_the_kernel_and_xla_write_the_same(model):
    options = {"key": jax.random.key(3), "length": 40, "temperature": [0.7, 1.0], "top_k": 20, "min_p": 0.01}
    ids = generate_function(model, PARAMS, context("coffee", "mocha."), **options)
    np.testing.assert_array_equal(ids, generate(context("coffee", "mocha."), **options))


@pytest.mark.parametrize("character", [-1, -2, 128])
@by_both
def test_what_is_no_character_gives_no_number(model, character):
    state = init_state(model, jax.random.split(jax.random.key(0), 2))
    ids = np.array([[1, character, 2], [1, 2, 3]])
    after = read(model, PARAMS, arrange(model, PARAMS), state, ids)
    assert np.isnan(after.carry[-1].h[0]).all()
    assert np.isfinite(after.carry[-1].h[1]).all()


def test_a_seed_writes_the_same_text_again_and_another_one_another():
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


def reference(logits, temperature, top_k, top_p, min_p):
    """The distribution to draw from, in NumPy and float64: temperature, then top-k, top-p and min-p."""
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


def draws_of(logits, config, count, model):
    """Counts of the first characters that a model draws which says the logits of every character."""
    size = len(logits)
    fixed = CharLSTM(size, hidden_dim=4, hidden_layers=1, implementation=model.implementation)
    params = jax.tree.map(jnp.zeros_like, init_params(jax.random.key(0), fixed))
    params["head"]["bias"] = jnp.asarray(logits, jnp.float32)
    options = {name: getattr(config, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    rows = np.zeros((1000, 1), np.int32)
    ids = generate_function(fixed, params, rows, key=jax.random.key(7), length=count // 1000, **options)
    return np.bincount(np.asarray(ids).ravel(), minlength=size)


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


@by_both
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_a_hundred_thousand_draws_follow_the_distribution(model, temperature, options):
    """Pearson's chi-square test, at a level that one of a million right programs fails."""
    logits = [2.0, -1.0, 0.5, 1.5, 0.0, -3.0, 1.4, 0.9]
    config = SampleConfig(temperature=temperature, **options)
    count = 100_000
    drawn = draws_of(logits, config, count, model)
    assert drawn.sum() == count
    expected = reference(logits, temperature, config.top_k, config.top_p, config.min_p) * count
    assert (drawn[expected == 0] == 0).all()
    kept = expected > 0
    statistic = np.sum((drawn[kept] - expected[kept]) ** 2 / expected[kept])
    freedom = kept.sum() - 1
    assert freedom == 0 or jax.scipy.special.gammaincc(freedom / 2, statistic / 2) > 1e-6


def test_the_test_of_draws_sees_a_wrong_distribution():
    drawn = draws_of([2.0, -1.0, 0.5, 1.5, 0.0, -3.0, 1.4, 0.9], SampleConfig(temperature=1.1), 100_000, MODEL)
    expected = reference([2.0, -1.0, 0.5, 1.5, 0.0, -3.0, 1.4, 0.9], 1.0, None, None, None) * 100_000
    assert jax.scipy.special.gammaincc(3.5, np.sum((drawn - expected) ** 2 / expected) / 2) < 1e-6


@pytest.mark.parametrize(
    "values", [{3: 1.0, 5: 1.0}, {}, {0: -np.inf, 2: 4.0}, {4: np.nan}, {7: np.inf}, {...: -np.inf}]
)
@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"min_p": 0.5}])
@by_both
def test_no_logit_is_out_of_order(model, values, options):
    logits = np.full(8, -1.0, np.float32)
    for place, value in values.items():
        logits[place] = value
    if options and not np.isfinite(logits).all():
        return  # what a filter makes of these is nobody's concern
    drawn = draws_of(logits, SampleConfig(temperature=0, **options), 1000, model)
    assert drawn[jnp.argmax(logits)] == 1000


def test_what_is_ruled_out_leaves_the_other_draws_as_they_were():
    write = functools.partial(generate, np.tile(context("coffee"), (500, 1)), key=jax.random.key(1), length=1)
    free, filtered = np.asarray(write()), np.asarray(write(top_k=40))
    kept = np.isin(free, np.unique(filtered))
    assert kept.any()
    assert not kept.all()
    assert (free == filtered)[kept].mean() > 0.9


@pytest.mark.parametrize("dtype", STEP_DTYPES)
@pytest.mark.parametrize("library", libraries(), ids=lambda library: library.instructions)
@pytest.mark.parametrize(("batch", "hidden"), [(1, 10), (1, 40), (7, 33), (70, 16)])
def test_every_form_of_the_kernel_takes_the_same_steps(batch, hidden, library, dtype):
    """Each that this processor runs, for the three ways in which threads share the work, beside the model."""
    rng = np.random.default_rng(0)
    model = CharLSTM(20, hidden_dim=hidden, hidden_layers=2)
    params = init_params(jax.random.key(0), model)
    given = rng.integers(0, 20, (batch, 12)).astype(np.int32)
    weights = pack(layer_weights(model, params), params["head"]["kernel"], params["head"]["bias"], dtype, library)
    keys, choice = jax.random.split(jax.random.key(0), batch), make_choice(SampleConfig(), batch)
    take = jax.jit(functools.partial(take_steps, library, dtype, vocab_size=20, with_logits=True))
    _, carry, said = take(weights, init_carry(model, batch), given, keys, jnp.int32(0), choice)
    logits, expected = model.apply({"params": params}, given, init_carry(model, batch))
    tolerance = {"float32": 1e-5, "bfloat16": 0.02, "int8": 0.02}[dtype]
    np.testing.assert_allclose(said[:, 1:], logits[:, :-1], atol=tolerance)
    np.testing.assert_allclose(carry[1].h, expected[1].h, atol=tolerance)


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


def test_a_length_or_a_setting_compiles_nothing_anew():
    generate(context("coffee"), key=jax.random.key(0), length=20, top_p=0.9)
    before = _generate._cache_size()
    for length, options in ((17, {"top_k": 3}), (32, {"min_p": 0.1, "temperature": 0.5}), (25, {"top_p": 0.1})):
        generate(context("mocha."), key=jax.random.key(1), length=length, **options)
    assert _generate._cache_size() == before


def test_the_choice_is_that_of_the_kernel():
    """The two forms of it on the same logits and noise, whatever the settings."""
    rng = np.random.default_rng(0)
    logits, keys = rng.normal(0, 3, (200, 65)), jax.random.split(jax.random.key(0), 200)
    noise = draw_noise(keys, jnp.arange(7, 8), 65)
    settings = Choice(
        rng.choice([0, 0.3, 1, 3], 200).astype(np.float32),
        rng.choice([1, 2, 10, 64, 65, 1000], 200).astype(np.int32),
        rng.choice([1e-6, 0.3, 0.9, np.inf], 200).astype(np.float32),
        rng.choice([0, 0.01, 0.3, 1], 200).astype(np.float32),
    )
    if (library := library_for_steps()) is None:
        pytest.skip("no kernel on this machine")
    chosen = jax.vmap(functools.partial(choose, filtered=True))(noise[0], jnp.asarray(logits, jnp.float32), settings)
    # One layer whose unit n says the logits of text n: its cell state was set to.
    one = CharLSTM(65, hidden_dim=200, hidden_layers=1)
    params = jax.tree.map(jnp.zeros_like, init_params(jax.random.key(0), one))
    params["head"]["kernel"] = jnp.asarray(logits, jnp.float32)
    carry = (LSTMCarry(jnp.zeros((200, 200)), jnp.eye(200)),)
    draw = np.full((200, 1), DRAW, np.int32)
    take = jax.jit(functools.partial(take_steps, library, "float32", vocab_size=65))
    ids, _, _ = take(arrange(one, params), carry, draw, keys, jnp.int32(7), settings)
    np.testing.assert_array_equal(ids[:, 0], chosen)


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-30}, {"min_p": 1.0}]
)
def test_where_one_character_is_left_it_is_the_likeliest(options):
    greedy = generate(context("coffee"), key=jax.random.key(1), length=20, temperature=0)
    ids = generate(context("coffee"), key=jax.random.key(2), length=20, **options)
    np.testing.assert_array_equal(ids, greedy)


@by_both
def test_other_settings_and_lengths_do_not_compile_anew(model):
    write = functools.partial(generate_function, model, PARAMS, context("abc"))
    write(key=jax.random.key(0), length=33, temperature=0.7, top_k=3)
    write(key=jax.random.key(0), length=33, temperature=0.7)
    before = decode._cache_size()
    write(key=jax.random.key(1), length=64, temperature=0.2, top_k=9)
    write(key=jax.random.key(1), length=50, temperature=1.2, top_p=0.3)
    write(key=jax.random.key(1), length=49, temperature=0.9, min_p=0.3)
    write(key=jax.random.key(1), length=34, temperature=0)
    assert decode._cache_size() == before


def test_int8_weights_say_nearly_the_same():
    if library_for_steps() is None:
        with pytest.raises(NotImplementedError, match="int8"):
            generate(context("a"), key=jax.random.key(0), length=1, weights="int8")
        return
    model = CharLSTM(VOCAB.size, hidden_dim=100, hidden_layers=2)
    params = init_params(jax.random.key(0), model)
    state = init_state(model, jax.random.split(jax.random.key(0), 3))
    ids = np.random.default_rng(0).integers(0, 128, (3, 30))
    exact, rounded = (read(model, params, arrange(model, params, dtype), state, ids) for dtype in ("float32", "int8"))
    for one, other in zip(jax.tree.leaves(exact.carry), jax.tree.leaves(rounded.carry), strict=True):
        np.testing.assert_allclose(one, other, atol=0.05)
        assert not np.array_equal(one, other)


@pytest.mark.parametrize("implementation", ["scan", "flax"])
def test_int8_is_for_the_kernel(implementation):
    model = MODEL.clone(implementation=implementation)
    with pytest.raises(NotImplementedError, match="int8 weights take the compiled kernel"):
        generate_function(model, PARAMS, context("a"), key=jax.random.key(0), length=1, weights="int8")


def test_a_context_outside_the_vocabulary_is_named():
    with pytest.raises(UserError, match=r"'é' \(U\+00E9\)"):
        generate_text(MODEL, PARAMS, VOCAB, "café")


def test_a_stop_string_ends_a_text():
    (whole,) = generate_text(MODEL, PARAMS, VOCAB, "ab", length=50)
    stop = whole[20:23]
    (cut,) = generate_text(MODEL, PARAMS, VOCAB, "ab", length=50, stop=stop)
    assert cut == whole[: whole.index(stop) + 3]
    for wrong in ("", "é"):
        with pytest.raises(UserError, match="can never occur"):
            generate_text(MODEL, PARAMS, VOCAB, "ab", stop=wrong)


@pytest.mark.parametrize(
    "options",
    [
        *[
            {"temperature": -1},
            {"top_p": 0},
            {"top_p": 1.1},
            {"top_k": 0},
            {"length": -1},
            {"min_p": -0.1},
            {"min_p": 2},
        ],
        *[{"weights": "int4"}, {"temperature": [1.0, 2.0]}, {"temperature": [-1.0]}, {"context_lengths": [2]}],
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
        {"seed": [-1]},
        {"num_samples": 0},
    ],
    ids=str,
)
def test_lists_that_do_not_agree(options):
    with pytest.raises(UserError):
        generate_text(MODEL, PARAMS, VOCAB, **options)
