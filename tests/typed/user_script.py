"""A user's script that needs every public name, for mypy in strict mode; it is never run."""

import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import optax
from rich.console import Console

import charjax
from charjax import (
    CharLSTM,
    Corpus,
    DynamicConfig,
    DynamicPiece,
    DynamicScore,
    Evaluation,
    History,
    Interrupted,
    LSTMCarry,
    LSTMCell,
    LSTMWeights,
    ModelConfig,
    NotebookReporter,
    PlainReporter,
    Reporter,
    SampleConfig,
    ScoredPiece,
    TensorBoard,
    TerminalReporter,
    Tracker,
    TrainConfig,
    TrainState,
    UserError,
    Vocab,
    activations,
    beam_search,
    beam_search_text,
    data_path,
    dynamic_score,
    dynamic_score_pieces,
    evaluate,
    export,
    fit,
    generate,
    generate_text,
    import_model,
    init_carry,
    init_params,
    init_train_state,
    interop,
    join_processes,
    load_model,
    make_eval_step,
    make_mesh,
    make_optimizer,
    make_streams,
    make_train_step,
    ops,
    preset,
    put_streams,
    read_pieces,
    restore_checkpoint,
    save_checkpoint,
    save_model,
    score,
    score_pieces,
    sweep,
    unit_activations,
    unit_correlations,
)
from charjax.export import write_onnx, write_stablehlo
from charjax.interop import from_torch, to_torch
from charjax.train_state import abstract_train_state


def train(path: Path) -> TrainState:
    corpus = Corpus.from_file(path, vocab="chars", train_frac=0.95)
    model = CharLSTM.from_config(ModelConfig(hidden_dim=64, dropout=0.1), corpus.vocab.size)
    history = History()
    state = fit(model, corpus, TrainConfig(epochs=2), out="runs/one", reporter=history, batch_size=16)
    small = preset("small", len(corpus.train))
    fit(CharLSTM.from_config(small.model, corpus.vocab.size), corpus, "small", seed=1)
    losses: list[float] = [evaluation.val_loss for evaluation in history.evaluations]
    print(charjax.__version__, min(losses), evaluate(model, state.params, corpus.validation))
    return state


class Printed:
    def log(self, step: int, values: Mapping[str, float]) -> None:
        print(step, values["val_loss"])


def train_with_care(model: CharLSTM, corpus: Corpus, kind: int) -> TrainState:
    reporters: list[Reporter] = [NotebookReporter(), PlainReporter(sys.stdout), TerminalReporter(Console())]
    trackers: list[Tracker] = [TensorBoard("runs/board"), Printed()]

    def good_enough(evaluation: Evaluation, state: TrainState) -> bool:
        return evaluation.val_loss < 1.5 or int(state.step) > 10**6

    schedule = optax.linear_schedule(0.01, 0.0, 1000)
    fit(model, corpus, optimizer=optax.sgd(schedule), progress=False, epoch=3)  # type: ignore[call-arg]
    try:
        return fit(
            model,
            corpus,
            learning_rate=schedule,
            init_from="runs/one",
            patience=3,
            reporter=reporters[kind],
            trackers=trackers,
            callbacks=[good_enough],
        )
    except Interrupted as interrupted:
        state: TrainState = interrupted.state
        return state
    except UserError as error:
        raise SystemExit(str(error)) from None


def search(model: CharLSTM, corpus: Corpus) -> CharLSTM:
    result = sweep(model, corpus, "tiny", learning_rate=[1e-3, 3e-3], dropout=0.2, seeds=2, out="runs/best", epochs=2)
    losses: list[float] = [member.val_loss for member in result.members]
    print(
        result.table(),
        result.best.setting.learning_rate,
        min(losses),
        evaluate(result.model, result.params, corpus.validation),
    )
    return result.model


def train_by_hand(model: CharLSTM, ids: np.ndarray) -> TrainState:
    mesh, optimizer = make_mesh(jax.devices()[:1]), make_optimizer(TrainConfig(), total_steps=10)
    state = init_train_state(jax.random.key(0), model, optimizer, batch_size=2, mesh=mesh)
    state = state.replace(params=init_params(jax.random.key(1), model))
    streams = put_streams(make_streams(ids, batch_size=2, seq_len=8), mesh)
    step = make_train_step(model, optimizer, seq_len=8, mesh=mesh, steps_per_call=2)
    state, metrics = step(state, streams)
    sums, carry = make_eval_step(model, seq_len=8, mesh=mesh)(state.params, streams, init_carry(model, 2))
    print(float(metrics.nats) / int(metrics.chars), sums.chars, carry[0].c.shape)
    return state


def train_together(model: CharLSTM, corpus: Corpus, process: int) -> int:
    join_processes("10.0.0.1:9000", num_processes=2, process_id=process)
    state = fit(model, corpus, out="runs/two", resume=True)
    abstract = abstract_train_state(model, make_optimizer(TrainConfig(), total_steps=10), batch_size=64)
    state, info, progress = restore_checkpoint("runs/two", abstract)
    save_checkpoint(Path("runs/three"), state, info, progress)
    return progress.step


def read_texts() -> Corpus:
    corpus = Corpus.from_file(["a.txt", Path("more")], separator="", validation=Path("held_out.txt.gz"))
    pieces = read_pieces("texts/*.txt", corpus.vocab, on_unknown="replace")
    print(corpus.paths, pieces.size, corpus.vocab.encode("é", on_unknown="skip"))
    corpus.vocab.encode("é", on_unknown="drop")  # type: ignore[arg-type]
    return Corpus.from_file("-", validation=data_path("coffee.txt"))


def use(run: Path) -> list[str]:
    model, params, vocab = load_model(run)
    ids = Vocab.from_dict(vocab.to_dict()).encode("a flat white")
    nats: np.ndarray = score(model, params, ids[None])
    pieces: list[ScoredPiece] = list(score_pieces(model, params, read_pieces("text.txt", vocab), top=3))
    found: DynamicScore = dynamic_score(model, params, ids, learning_rate=DynamicConfig().learning_rate)
    both: list[DynamicPiece] = list(dynamic_score_pieces(model, params, [ids]))
    best, log_probs = beam_search(model, params, ids, length=9, beam_width=2)
    written = generate(model, params, ids[None], key=jax.random.key(1), length=9, temperature=[0.5])
    cells = activations(model, params, ids[None]), unit_activations(model, params, ids[None], [(0, 1)])
    print(nats.mean(), len(pieces), found.loss, len(both), best[0], log_probs, written.shape, cells[0].shape)
    print(unit_correlations(model, params, vocab, ids).best(0, top=3), SampleConfig(top_k=5).top_k)
    state_dict = to_torch(params)
    print(from_torch(state_dict).keys(), interop.to_torch(params).keys(), charjax.ops.lstm is ops.lstm)
    return [*generate_text(model, params, vocab, ["a", "b"], stop="\n"), *beam_search_text(model, params, vocab, "a")]


def share(model: CharLSTM, state: TrainState, vocab: Vocab) -> None:
    save_model("model", model, state.params, vocab)
    for write, name in ((export.write_torch, "a.safetensors"), (write_onnx, "a.onnx"), (write_stablehlo, "a.zip")):
        write("model", name)
    export.write_html("model", "a.html", title="Ask the model", context="To be")
    import_model("a.safetensors", "again", vocab=vocab)


def layer(x: jax.Array) -> jax.Array:
    carry = LSTMCarry(x[:, 0], x[:, 0])
    cell = LSTMCell(hidden_dim=8, input_dim=8)
    variables = cell.init(jax.random.key(0), carry, x[:, 0])
    y, carry = ops.lstm(LSTMWeights(**variables["params"]), x, carry)
    charjax.train_all  # type: ignore[attr-defined]  # noqa: B018 -- other names are errors
    return y + carry.h[:, None]
