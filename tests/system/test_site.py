"""Links between documents lead to files and headings, and the API reference has every public name."""

import inspect
import json
import re
from pathlib import Path

import pytest

import charjax

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


def test_the_api_reference_has_every_public_name_once():
    modules = {name for name in charjax.__all__ if inspect.ismodule(getattr(charjax, name))}
    functions = {
        f"{module}.{name}"
        for module in modules
        for name, value in vars(getattr(charjax, module)).items()
        if inspect.isfunction(value)
    }
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    listed = re.findall(r"^::: charjax\.(\S+)$", pages, re.MULTILINE)
    assert {*charjax.__all__} - modules | functions <= {*listed}
    assert len(listed) == len({*listed})
