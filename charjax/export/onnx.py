"""Writes a model as an ONNX graph (https://onnx.ai) with the native LSTM operator."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from charjax.array_types import Params
from charjax.errors import UserError
from charjax.export.loading import load_to_export
from charjax.host.atomic_file import writing_output
from charjax.memory_budget import count_parameters
from charjax.model import CharLSTM

# These versions are from January 2022; every runtime still in use supports them.
_OPSET, _IR_VERSION = 16, 8
# A protocol buffer can hold 2 GiB; the rest is for the graph and the vocabulary.
_LARGEST = 2**31 - 2**26

# Example code that reads the file; FILE stands for its name.
READER = """\
# pip install onnxruntime
import json

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("FILE")
vocab = json.loads(session.get_modelmeta().custom_metadata_map["vocab"])
characters = vocab["characters"] or "".join(map(chr, range(256)))  # of the kinds "ascii" and "bytes": the codes

layers, _, hidden_dim = session.get_inputs()[1].shape
h = c = np.zeros((layers, 1, hidden_dim), np.float32)  # the state of one text, before its first character
ids = np.array([[characters.index(character) for character in "The "]])
logits, h, c = session.run(None, {"ids": ids, "h": h, "c": c})
print(characters[logits[0, -1].argmax()])
"""


def write_onnx(run: str | Path, out: str | Path) -> None:
    """Writes a model as an ONNX file; requires pip install "charjax[export]".

    The inputs are ids [B, T] int64 and the state before them, h and c, each [L, B, H] float32. The outputs are the
    logits [B, T, V] float32 for the character after each position, and the state after the last one, h_out and c_out.
    B and T are dynamic. The metadata contains the vocabulary, in the format of vocab.json, under "vocab".

    Args:
        run: a run folder, or any folder with the three model files.
        out: the file to write; an existing file is replaced.

    Raises:
        UserError: onnx is not installed, the run does not contain a model or its weights exceed 2 GB, or `out` is a
            folder or a file of the run.
        OSError: the file cannot be written.

    Examples:
        >>> import tempfile
        >>> import jax, onnx
        >>> from charjax import CharLSTM, Vocab, init_params, save_model
        >>> from charjax.export import write_onnx
        >>> model = CharLSTM(Vocab.ascii().size, hidden_dim=8, hidden_layers=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(f"{folder}/run", model, init_params(jax.random.key(0), model), Vocab.ascii())
        ...     write_onnx(f"{folder}/run", f"{folder}/model.onnx")
        ...     [value.name for value in onnx.load(f"{folder}/model.onnx").graph.input]
        ['ids', 'h', 'c']
    """
    try:
        import onnx  # noqa: PLC0415 -- an extra
    except ImportError as error:
        raise UserError('ONNX export needs onnx; install it with pip install "charjax[export]"') from error
    model, params, vocab = load_to_export(run, out)
    if 4 * count_parameters(model.config, model.vocab_size) > _LARGEST:
        advice = "more than an ONNX file can hold; export --to torch or stablehlo"
        raise UserError(f"{run} has over 2 GB of weights, {advice}")
    opset = onnx.helper.make_opsetid("", _OPSET)
    graph = _graph(onnx, model, params)
    made = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION, producer_name="charjax")
    onnx.helper.set_model_props(made, {"vocab": json.dumps(vocab.to_dict())})
    onnx.checker.check_model(made, full_check=True)
    with writing_output(Path(out)) as file:
        file.write(made.SerializeToString())


def _graph(onnx: ModuleType, model: CharLSTM, params: Params) -> Any:
    """Returns the ONNX graph; the library is an argument because it is only imported when needed."""
    layers, hidden, vocab_size = model.hidden_layers, model.hidden_dim, model.vocab_size
    node, value, number = onnx.helper.make_node, onnx.helper.make_tensor_value_info, onnx.TensorProto
    state = [layers, "batch", hidden]
    inputs = [value("ids", number.INT64, ["batch", "length"])] + [value(name, number.FLOAT, state) for name in "hc"]
    outputs = [value("logits", number.FLOAT, ["batch", "length", vocab_size])]
    outputs += [value(f"{name}_out", number.FLOAT, state) for name in "hc"]
    # The LSTM operator takes [T, B, D].
    nodes = [
        node("Transpose", ["ids"], ["ids_TB"], perm=[1, 0]),
        node("OneHot", ["ids_TB", "vocab_size", "off_on"], ["x_0"]),
        *(node("Split", [name], [f"{name}_{n}" for n in range(layers)], axis=0) for name in "hc"),
    ]
    for n in range(layers):
        operands = [f"x_{n}", f"W_{n}", f"R_{n}", f"B_{n}", "", f"h_{n}", f"c_{n}"]
        nodes.append(node("LSTM", operands, [f"y_{n}", f"h_out_{n}", f"c_out_{n}"], hidden_size=hidden))
        nodes.append(node("Squeeze", [f"y_{n}", "direction"], [f"x_{n + 1}"]))
    nodes += [
        node("Transpose", [f"x_{layers}"], ["y"], perm=[1, 0, 2]),
        node("MatMul", ["y", "kernel"], ["products"]),
        node("Add", ["products", "bias"], ["logits"]),
        *(node("Concat", [f"{name}_out_{n}" for n in range(layers)], [f"{name}_out"], axis=0) for name in "hc"),
    ]
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in _constants(model, params).items()]
    return onnx.helper.make_graph(nodes, "charjax", inputs, outputs, constants)


def _constants(model: CharLSTM, params: Params) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {
        "vocab_size": np.array(model.vocab_size, np.int64),
        "off_on": np.array([0, 1], np.float32),
        "direction": np.array([1], np.int64),
        "kernel": np.asarray(params["head"]["kernel"]),
        "bias": np.asarray(params["head"]["bias"]),
    }
    for n in range(model.hidden_layers):
        cell = params[f"layer_{n}"]["cell"]
        bias = _gates_iofc(cell["bias"])
        arrays[f"W_{n}"], arrays[f"R_{n}"] = _gates_iofc(cell["w_ih"])[None], _gates_iofc(cell["w_hh"])[None]
        # ONNX has separate biases for the input and the state.
        arrays[f"B_{n}"] = np.concatenate([bias, np.zeros_like(bias)])[None]
    return arrays


def _gates_iofc(weights: Any) -> np.ndarray:
    """Transposes weights [..., 4H] with gates i, f, g, o to [4H, ...] in ONNX order, where g is called c."""
    i, f, g, o = np.split(np.asarray(weights).T, 4)
    return np.concatenate([i, o, f, g])
