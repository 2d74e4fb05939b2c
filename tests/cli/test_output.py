"""Output of the commands: facts made safe, and output that can no longer be written."""

import io
import sys
from pathlib import Path

import pytest

from charjax.cli.output import report_page, shell_path, tolerate_lost_output, write_facts


def test_facts_are_aligned_and_harmless(capsys):
    write_facts([("a", "one\ntwo"), ("name", "\x1b[31mred\udcff")])
    assert capsys.readouterr().out == "a     one\\ntwo\nname  ␛[31mred\\xff\n"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("runs/one", "runs/one"),
        ("my run", "'my run'"),
        ("-re2", "./-re2"),
        ("a\nb", "'a\\nb'"),
        ("re\udcff", r"'re\xff'"),
    ],
)
def test_paths_of_a_hint_can_be_copied_to_a_shell(path, shown):
    assert shell_path(Path(path)) == shown


def test_the_path_of_a_page_is_harmless(capsys):
    report_page(Path("p\udcff\n.html"), "all characters")
    assert capsys.readouterr().err == "written to p\\xff\\n.html: all characters\n"


class Broken(io.StringIO):
    """A file that can be written again after some failures."""

    failures = 2

    def write(self, text):
        if self.failures:
            self.failures -= 1
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_lost_output_is_logged_once_and_writing_is_tried_again(monkeypatch, caplog):
    output, errors = Broken(), Broken()
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "stderr", errors)
    with tolerate_lost_output():
        for number in range(4):
            sys.stdout.write(str(number))
            sys.stderr.write(str(number))
    assert output.getvalue() == errors.getvalue() == "23"
    assert [record.getMessage() for record in caplog.records] == [
        f"standard {name} can no longer be written (No space left on device); training continues"
        for name in ("output", "error")
    ]
