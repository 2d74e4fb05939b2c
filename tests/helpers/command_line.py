"""Runs commands as a user does."""

from charjax.cli import main as cli


def shows(capsys, *argv, warns=""):
    """Runs a command: -> what it prints."""
    capsys.readouterr()
    code = cli.main([str(argument) for argument in argv])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert warns in err
    return out


def fails(capsys, *argv):
    """Runs a command, which must fail as the user's mistake: -> its one line."""
    capsys.readouterr()
    assert cli.main([str(argument) for argument in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("charjax: error: ")
    return line.removeprefix("charjax: error: ")
