"""The container and the extras are what documents and messages say; `.ci/packages` builds and tries the packages."""

import re
import tomllib

import pytest


@pytest.fixture
def extras(root):
    """The packages of each extra."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {name: set(packages) for name, packages in project["optional-dependencies"].items()}


def test_the_container_does_what_the_first_command_of_the_readme_does(root):
    steps = re.findall(r"^(?:RUN|CMD) (.+)", (root / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert " && ".join(steps[1:]) == re.search(r"^python3 -m venv .*", readme, re.MULTILINE)[0]


def test_extras_that_documents_and_messages_name_exist(root, extras):
    files = [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("charjax/**/*.py"), *root.glob("notebooks/*")]
    named = [re.findall(r"(?:charjax|install (?:--\w+ )?[\"']?\.)\[([\w,]+)\]", one.read_text()) for one in files]
    assert (
        {"plots", "torch"} <= {extra for found in named for each in found for extra in each.split(",")} <= set(extras)
    )


def test_the_dev_extra_has_what_the_tests_of_others_need(extras):
    for extra in ("export", "notebooks", "plots", "tensorboard", "zstd"):
        assert extras[extra] <= extras["dev"]


def test_a_document_describes_every_extra(root, extras):
    rows = re.findall(r"^\| `(\w+)` \|", (root / "docs" / "installation.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(extras)
