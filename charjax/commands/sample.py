"""`charjax sample`."""

from charjax.arguments import SampleCommand
from charjax.checkpoint import load_params
from charjax.commands.write import write
from charjax.generate import generate_text, stream_text
from charjax.model import model_to_use


def sample(command: SampleCommand) -> None:
    """Prints the context and what the model goes on with: one text as it comes, several one after another."""
    config = command.sampling
    params, info, _ = load_params(command.run)
    model = model_to_use(info.model, info.vocab.size)
    if config.num_samples == 1:
        pieces = stream_text(model, params, info.vocab, command.context, config)
        first = next(pieces)  # a context that cannot be encoded is told of before anything is printed
        write(command.context + first)
        for piece in pieces:
            write(piece)
        write("\n")
        return
    texts = generate_text(
        model,
        params,
        info.vocab,
        command.context,
        seed=config.seed,
        length=config.length,
        num_samples=config.num_samples,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
    )
    for number, text in enumerate(texts, start=1):
        write(f"--- {number} of {len(texts)} ---\n{command.context}{text}\n")
