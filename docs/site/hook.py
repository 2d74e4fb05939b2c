"""Brings to the site what is not in docs/: README.md as its home page, notebooks, help texts, and what they link to.

MkDocs calls the functions named on_*. All links are those of the repository, so that they also work where it is
browsed; here they are turned into links between pages.
"""

import base64
import contextlib
import io
import json
import os
import re
from collections.abc import Iterator
from glob import glob
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from charjax.cli.arguments import COMMANDS
from charjax.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("*.md", "docs/**/*.md", "notebooks/*.ipynb")
os.environ["COLUMNS"] = "88"  # of the help texts
# The path of a link or image, in Markdown or HTML, without its anchor.
LINK = re.compile(r'(\]\(|^\[[^]]+\]: +|(?:href|src)=")([^)\s"#]+)', re.MULTILINE)
# Opening a page makes no request to a network.
REMOTE_IMAGE = re.compile(r"!\[([^]]*)\]\(https?://[^)]+\)")


@event_priority(100)  # before the plugins
def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages and files from outside docs/."""
    for path in linked_files():
        if path.endswith(".ipynb"):
            for name, content in notebook_files(path):
                files.append(File.generated(config, name, content=content))
        elif not path.startswith("docs/"):
            files.append(File.generated(config, name_on_site(path), abs_src_path=str(ROOT / path)))
    files.append(File.generated(config, "commands.md", content=help_texts()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links between files into links between pages, and images from a network into their text."""
    path = path_in_repository(page.file)

    def replaced(link: re.Match[str]) -> str:
        target = target_of(path, link[2])
        if target is None:
            return link[0]
        return link[1] + os.path.relpath(name_on_site(target), Path(page.file.src_uri).parent)

    return LINK.sub(replaced, REMOTE_IMAGE.sub(r"\1", markdown))


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links public names to the API reference, except in headings, links and signatures."""
    pattern = rf"<(h[1-6]|a|pre|autoref)\b.*?</\1>|<code>(?:charjax\.)?({'|'.join(linked_names())})</code>"

    def linked(found: re.Match[str]) -> str:
        name = found[2]
        return f'<autoref identifier="charjax.{name}">{found[0]}</autoref>' if name else found[0]

    return re.sub(pattern, linked, html, flags=re.DOTALL)


def linked_names() -> list[str]:
    """Returns the names in the API reference that are not also commands or everyday words, such as `score`."""
    pages = "".join(page.read_text(encoding="utf-8") for page in sorted(ROOT.glob("docs/api/*.md")))
    names = re.findall(r"^::: charjax\.([\w.]+)", pages, re.MULTILINE)
    return [name for name in names if re.search(r"[A-Z_.]|^fit$", name)]


def linked_files() -> list[str]:
    """Returns all documents, the notebooks, and the files that they link to, directly or not."""
    found = [path for pattern in PAGES for path in sorted(glob(pattern, root_dir=ROOT, recursive=True))]
    for path in found:  # which grows
        if path.endswith((".md", ".ipynb")):
            targets = (target_of(path, link[2]) for link in LINK.finditer((ROOT / path).read_text(encoding="utf-8")))
            found += dict.fromkeys(target for target in targets if target and target not in found)
    return found


def target_of(path: str, link: str) -> str | None:
    """Returns the file of the repository that a link in `path` leads to, if there is one."""
    target = os.path.normpath(os.path.join(os.path.dirname(path), link))
    return target if (ROOT / target).is_file() else None


def name_on_site(path: str) -> str:
    """Returns the name on the site of a file of the repository."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/").replace(".ipynb", ".md")


def path_in_repository(file: File) -> str:
    """Returns the path of the file that a page was made from."""
    if file.abs_src_path:
        return os.path.relpath(file.abs_src_path, ROOT)
    return file.src_uri.replace(".md", ".ipynb")


def notebook_files(path: str) -> Iterator[tuple[str, str | bytes]]:
    """Yields the names and contents of a notebook's page and of the images on it."""
    parts, images = [], 0
    for cell in json.loads((ROOT / path).read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"````python\n{source}\n````")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                images += 1
                image = Path(path).with_suffix(f".{images}.png")
                yield str(image), base64.b64decode(data["image/png"])
                parts.append(f"![Output of the cell above]({image.name})")
            else:
                text = "".join(output.get("text") or data["text/plain"])
                parts.append(f"```` {{ .text .output }}\n{text.rstrip()}\n````")
    yield name_on_site(path), "\n\n".join(parts)


def help_texts() -> str:
    """Returns a page with what --help prints for each command."""
    parts = ["# Commands", "What `charjax COMMAND --help` prints."]
    for command in COMMANDS:
        with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
            main([command, "--help"])
        text = re.sub(" +$", "", printed.getvalue(), flags=re.MULTILINE)
        usage, about, options = re.split(r"\n\n(.*?)\n\n(?= )", text, maxsplit=1, flags=re.DOTALL)
        parts += [f"## charjax {command}", about, f"```text\n{usage}\n\n{options.rstrip()}\n```"]
    return "\n\n".join(parts)
