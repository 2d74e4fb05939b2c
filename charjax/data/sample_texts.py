"""Finds the sample texts that come with charjax."""

from pathlib import Path

from charjax.errors import UserError, in_short


def data_path(name: str) -> Path:
    """Returns the path of a sample text that comes with charjax.

    Args:
        name: "coffee.txt", 50,282 characters of random sentences about coffee, or "shakespeare.txt", eight plays,
            1,113,300 characters. data_files/README.md describes them.

    Raises:
        UserError: there is no such sample text.

    Examples:
        >>> from charjax import Corpus, data_path
        >>> corpus = Corpus.from_file(data_path("coffee.txt"))
        >>> len(corpus.train) + len(corpus.validation)
        50282
    """
    package = Path(__file__).parents[1]
    installed, cloned = package / "data_files", package.parent / "data_files"
    texts = {text.name: text for text in sorted((installed if installed.is_dir() else cloned).glob("*.txt"))}
    if not isinstance(name, str) or name not in texts:
        raise UserError(f"name must be that of a sample text, {' or '.join(texts)}, not {in_short(name)}")
    return texts[name]
