"""JAX's transformations of the model and of generation, beyond jit and grad."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from charjax.generation.generate import generate
from charjax.model import CharLSTM, init_carry, init_params
from charjax.ops.lstm.native.libraries import library_for

IDS = np.arange(18, dtype=np.int32).reshape(2, 9) % 5
MODEL = CharLSTM(5, hidden_dim=4, hidden_layers=2)


def parameters(seed=0):
    return init_params(jax.random.key(seed), MODEL)


def loss(implementation, dtype, params):
    model = MODEL.clone(implementation=implementation, dtype=dtype)
    logits, _ = model.apply({"params": params}, IDS, init_carry(model, 2))
    return jnp.mean(logits.astype(jnp.float32) ** 2)


@functools.cache
def hessian_times_vector(implementation, dtype):
    """The derivative of the gradient along a direction, by reverse mode over reverse mode."""
    params = parameters()
    direction = parameters(1)

    def slope(params):
        gradient = jax.grad(functools.partial(loss, implementation, dtype))(params)
        return sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))

    return ravel_pytree(jax.jit(jax.grad(slope))(params))[0]


def cases():
    """The default and one implementation that keeps bfloat16 as bits; the others when slow."""
    quick = [(None, "float32"), ("custom_vjp", "bfloat16")]
    for case in itertools.product((None, "custom_vjp", "native", "recompute", "wavefront"), ("float32", "bfloat16")):
        if case[0] != "native" or library_for(case[1]):
            yield pytest.param(*case, marks=[] if case in quick else pytest.mark.slow)


@pytest.mark.parametrize(("implementation", "dtype"), [*cases()])
def test_second_derivatives(implementation, dtype):
    expected = hessian_times_vector("scan", "float32")
    tolerance = {"float32": 1e-5, "bfloat16": 0.05}[dtype] * float(jnp.abs(expected).max())
    np.testing.assert_allclose(hessian_times_vector(implementation, dtype), expected, atol=tolerance)


def test_a_hessian():
    """Of the head's bias, by reverse mode over reverse mode, beside forward mode over reverse mode of "scan"."""
    params = parameters()

    def of_bias(implementation, bias):
        return loss(implementation, "float32", {**params, "head": {**params["head"], "bias": bias}})

    found = jax.jacrev(jax.jacrev(functools.partial(of_bias, None)))(params["head"]["bias"])
    expected = jax.hessian(functools.partial(of_bias, "scan"))(params["head"]["bias"])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_forward_mode_names_the_implementation_that_has_it():
    params = parameters()

    def slope(implementation):
        return jax.jvp(functools.partial(loss, implementation, "float32"), (params,), (params,))[1]

    with pytest.raises(TypeError) as caught:
        slope(None)
    assert any('implementation="scan"' in note for note in caught.value.__notes__)
    assert np.isfinite(slope("scan"))


@pytest.mark.parametrize("implementation", [None, pytest.param("scan", marks=pytest.mark.slow)])
def test_generation_under_vmap(implementation):
    model, context = MODEL.clone(implementation=implementation), IDS[:, :3]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(parameters(seed) for seed in range(2)))
    keys = jax.random.split(jax.random.key(7), 2)
    sample = functools.partial(generate, model, context=context, length=6)
    together = jax.vmap(lambda params, key: sample(params, key=key))(params, keys)
    for n in range(2):
        alone = sample(jax.tree.map(lambda leaf, n=n: leaf[n], params), key=keys[n])
        np.testing.assert_array_equal(together[n], alone)
    by_key = jax.vmap(lambda key: sample(parameters(), key=key))(keys)
    np.testing.assert_array_equal(by_key[0], together[0])


def test_export_with_the_portable_implementation():
    model = MODEL.clone(implementation="scan")
    params, carry = parameters(), init_carry(model, 2)
    apply = jax.jit(lambda params, ids, carry: model.apply({"params": params}, ids, carry))
    data = jax.export.export(apply)(params, IDS, carry).serialize()
    found = jax.export.deserialize(data).call(params, IDS, carry)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(apply(params, IDS, carry)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
