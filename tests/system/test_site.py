"""Links between documents lead to files and headings."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("*", "docs/**/*", "data_files/*", "tests/*", "benchmarks/**/*")
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in (*(f"{folder}.md" for folder in FOLDERS), "notebooks/*.ipynb")
    for path in ROOT.glob(pattern)
)


def prose(path):
    """Returns a document's text, or that of a notebook's Markdown cells, without code blocks."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell["source"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n\n".join(map("".join, cells))
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(path):
    """Returns the anchors of a document's headings, as code browsers and mkdocs.yml make them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return [
        re.sub(r"[^\w\- ]", "", re.sub(r"\]\(\S+\)", "", heading)).lower().replace(" ", "-") for heading in headings
    ]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings(document):
    path = ROOT / document
    for link in re.findall(r"""(?:\]\(|^\[[^]]+\]: +|(?:href|src)=")([^)\s"]+)""", prose(path), re.MULTILINE):
        file, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = path.parent / file if file else path
        assert target.is_file(), link
        # One that two headings share has a different form on the site.
        assert not anchor or anchors(target).count(anchor) == 1, link
