"""The program's entry: training starts again with huge pages where that helps, once, and never against the user."""

import sys

import pytest

from charjax import __main__ as entry


@pytest.fixture
def starts(monkeypatch):
    """What the process is replaced by."""
    calls = []
    monkeypatch.setattr(entry.os, "execv", lambda *call: calls.append(call))
    monkeypatch.setenv("GLIBC_TUNABLES", "to be restored")
    monkeypatch.delenv("GLIBC_TUNABLES")
    return calls


def test_where_huge_pages_are_for_those_who_ask(starts, tmp_path):
    setting = tmp_path / "enabled"
    setting.write_text("always [madvise] never\n")
    entry._start_again_with_huge_pages(setting)
    assert starts == [(sys.executable, sys.orig_argv)]
    assert entry.os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    entry._start_again_with_huge_pages(setting)
    assert len(starts) == 1


@pytest.mark.parametrize("content", ["[always] madvise never", "always madvise [never]", None])
def test_elsewhere_nothing_happens(starts, tmp_path, content):
    if content is not None:
        (tmp_path / "enabled").write_text(content)
    entry._start_again_with_huge_pages(tmp_path / "enabled")
    assert starts == []


def test_what_the_user_set_stays(starts, tmp_path, monkeypatch):
    (tmp_path / "enabled").write_text("[madvise]")
    monkeypatch.setenv("GLIBC_TUNABLES", "mine")
    entry._start_again_with_huge_pages(tmp_path / "enabled")
    assert starts == []
    assert entry.os.environ["GLIBC_TUNABLES"] == "mine"
