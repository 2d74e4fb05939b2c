import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax.array_types import LSTMCarry
from charjax.errors import UserError
from charjax.interop import from_torch, to_torch
from charjax.metrics import cross_entropy
from charjax.model import CharLSTM, init_carry

V, H = 11, 6
B, T = 3, 17


def make_params(layers, seed=0):
    """Random parameters, biases too: zeros would hide a wrong order of the gates."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.array(rng.normal(scale=0.5, size=shape), jnp.float32)

    params = {
        f"layer_{n}": {"cell": {"w_ih": normal(H if n else V, 4 * H), "w_hh": normal(H, 4 * H), "bias": normal(4 * H)}}
        for n in range(layers)
    }
    return params | {"head": {"kernel": normal(H, V), "bias": normal(V)}}


def make_state_dict(layers=2):
    return to_torch(make_params(layers))


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize("layers", [1, 3, 12])
def test_params_survive_the_round_trip(layers):
    params = make_params(layers)
    back = from_torch(to_torch(params))
    assert_same(back, params)
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(back))


def test_the_round_trip_of_a_state_dict_adds_the_two_biases():
    state = make_state_dict()
    state["lstm.bias_hh_l1"] = np.arange(4 * H, dtype=np.float32)
    expected = {name: array.copy() for name, array in state.items()}
    expected["lstm.bias_ih_l1"] += expected["lstm.bias_hh_l1"]
    expected["lstm.bias_hh_l1"][:] = 0
    assert_same(to_torch(from_torch(state)), expected)


def test_to_torch_returns_torchs_names_shapes_and_layout():
    state = make_state_dict(2)
    assert {name: array.shape for name, array in state.items()} == {
        "lstm.weight_ih_l0": (4 * H, V),
        "lstm.weight_hh_l0": (4 * H, H),
        "lstm.bias_ih_l0": (4 * H,),
        "lstm.bias_hh_l0": (4 * H,),
        "lstm.weight_ih_l1": (4 * H, H),
        "lstm.weight_hh_l1": (4 * H, H),
        "lstm.bias_ih_l1": (4 * H,),
        "lstm.bias_hh_l1": (4 * H,),
        "head.weight": (V, H),
        "head.bias": (V,),
    }
    for array in state.values():
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert array.flags.owndata


def test_from_torch_shares_no_memory_with_its_input():
    state = make_state_dict()
    params = from_torch(state)
    before = jax.tree.map(np.array, params)
    for array in state.values():
        array[:] = 7
    assert_same(params, before)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, jnp.bfloat16])
def test_from_torch_converts_numpy_floats_to_float32(dtype):
    state = {name: array.astype(dtype) for name, array in make_state_dict().items()}
    params = from_torch(state)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    np.testing.assert_array_equal(params["head"]["bias"], state["head.bias"].astype(np.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lstm.weight_hh_l1": None}, "missing 'lstm.weight_hh_l1'"),
        ({"lstm.weight_ih_l0": None}, "missing|does not use"),
        ({"head.bias": None}, "missing 'head.bias'"),
        ({"lstm.bias_hh_l0": None}, "missing 'lstm.bias_hh_l0'"),
        ({"embedding.weight": np.ones((V, H))}, "'embedding.weight'.*does not use"),
        ({"lstm.weight_ih_l0_reverse": np.ones((4 * H, V))}, "'lstm.weight_ih_l0_reverse'.*bidirectional"),
        ({"lstm.weight_hr_l0": np.ones((2, H))}, "'lstm.weight_hr_l0'.*projections"),
        (
            {"lstm.weight_ih_l0": np.ones((4 * H, V + 1))},
            r"'lstm.weight_ih_l0' must have shape \[24, 11\].*not \[24, 12\]",
        ),
        ({"lstm.weight_ih_l1": np.ones((4 * H, V))}, "'lstm.weight_ih_l1' must have shape"),
        ({"lstm.weight_hh_l1": np.ones((4 * H, H + 1))}, "'lstm.weight_hh_l1' must have shape"),
        ({"lstm.weight_hh_l0": np.ones(())}, "'lstm.weight_hh_l0' must be an array"),
        ({"head.weight": np.ones((H, V))}, "'head.weight' must have shape"),
        ({"lstm.bias_ih_l0": np.ones((1, 4 * H))}, "'lstm.bias_ih_l0' must have shape"),
        ({"lstm.bias_ih_l0": np.ones(4 * H, np.int32)}, "'lstm.bias_ih_l0'.*float dtype, not int32"),
    ],
)
def test_from_torch_names_the_wrong_key(changes, message):
    state = make_state_dict() | changes
    state = {name: array for name, array in state.items() if array is not None}
    with pytest.raises(UserError, match=message) as caught:
        from_torch(state)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{}, {"params": make_params(1)}, {"head": make_params(1)["head"]}])
def test_to_torch_refuses_other_trees(wrong):
    with pytest.raises(UserError, match="missing"):
        to_torch(wrong)


def test_to_torch_refuses_additional_entries():
    with pytest.raises(UserError, match="'norm'"):
        to_torch({**make_params(1), "norm": jnp.ones(3)})


def make_torch_model(layers):
    torch = pytest.importorskip("torch")

    class TorchCharLSTM(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = torch.nn.LSTM(V, H, layers, batch_first=True)
            self.head = torch.nn.Linear(H, V)

        def forward(self, one_hot, carry=None):
            y, carry = self.lstm(one_hot, carry)
            return self.head(y), carry

    torch.manual_seed(1)
    return torch, TorchCharLSTM()


def make_window(layers):
    rng = np.random.default_rng(2)
    ids = rng.integers(0, V, (B, T + 1))
    h, c = rng.normal(size=(2, layers, B, H)).astype(np.float32)
    return ids[:, :-1], ids[:, 1:], h, c


def test_torch_loads_what_to_torch_returns():
    torch, model = make_torch_model(2)
    state = make_state_dict(2)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    assert list(model.state_dict()) == list(state)


@pytest.mark.parametrize(("layers", "implementation"), [(1, "scan"), (2, "flax"), (3, "scan")])
def test_logits_carry_and_gradients_equal_those_of_torch(layers, implementation):
    torch, torch_model = make_torch_model(layers)
    inputs, labels, h, c = make_window(layers)

    one_hot = torch.nn.functional.one_hot(torch.from_numpy(inputs), V).float()
    torch_logits, (torch_h, torch_c) = torch_model(one_hot, (torch.from_numpy(h), torch.from_numpy(c)))
    flat_logits = torch_logits.reshape(-1, V)
    torch_loss = torch.nn.functional.cross_entropy(flat_logits, torch.from_numpy(labels).reshape(-1))
    torch_loss.backward()

    model = CharLSTM(V, hidden_dim=H, hidden_layers=layers, implementation=implementation)
    params = from_torch(torch_model.state_dict())
    before = tuple(LSTMCarry(jnp.array(c[n]), jnp.array(h[n])) for n in range(layers))
    assert jax.tree.structure(before) == jax.tree.structure(init_carry(model, B))

    @jax.jit
    def loss(params):
        logits, carry = model.apply({"params": params}, jnp.array(inputs), before)
        return jnp.mean(cross_entropy(logits, jnp.array(labels))), (logits, carry)

    (value, (logits, carry)), grads = jax.value_and_grad(loss, has_aux=True)(params)

    np.testing.assert_allclose(value, torch_loss.item(), atol=1e-5)
    np.testing.assert_allclose(logits, torch_logits.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(jnp.stack([layer.h for layer in carry]), torch_h.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(jnp.stack([layer.c for layer in carry]), torch_c.detach().numpy(), atol=1e-5)
    ours = to_torch(grads)
    for name, parameter in torch_model.named_parameters():
        # Each of torch's two biases has the gradient of our single one.
        gradient = ours[name.replace("bias_hh", "bias_ih")]
        np.testing.assert_allclose(gradient, parameter.grad.numpy(), atol=1e-5, err_msg=name)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_from_torch_accepts_any_float_dtype_and_gradients(dtype):
    torch, torch_model = make_torch_model(1)
    torch_model.to(getattr(torch, dtype))
    params = from_torch(dict(torch_model.named_parameters()))
    expected = torch_model.head.weight.detach().float().numpy().T
    np.testing.assert_array_equal(params["head"]["kernel"], expected)
    assert params["head"]["kernel"].dtype == jnp.float32


def test_from_torch_refuses_integers():
    torch, torch_model = make_torch_model(1)
    state = torch_model.state_dict()
    state["head.bias"] = torch.zeros(V, dtype=torch.int32)
    with pytest.raises(UserError, match=r"'head.bias' must have a float dtype, not torch\.int32"):
        from_torch(state)
