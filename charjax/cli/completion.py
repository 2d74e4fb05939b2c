"""Writes the scripts with which shells complete commands, options, choices and paths; does not import jax."""

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

SHELLS = ("bash", "zsh", "tcsh")
_GLOBAL_OPTIONS = "--help --version --print-completion"
# For a command, the word before the one to complete, and that word: prints the words to choose from, or nothing where
# a path belongs; fails where neither does.
_FUNCTION = """\
_charjax_words() {{
  case "$1 $2" in
    charjax\\ *) echo '{commands}'; return ;;
{values}
  esac
  case "$1 $3" in
{options}
  esac
}}
"""
_BASH = """
_charjax() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]} words
  if [[ $word == '=' ]]; then word=''; elif [[ $before == '=' ]]; then before=${COMP_WORDS[COMP_CWORD-2]}; fi
  if [[ $COMP_CWORD == 1 ]]; then command=charjax; fi
  COMPREPLY=()
  if words=$(_charjax_words "$command" "$before" "$word"); then
    COMPREPLY=($(compgen -W "$words" -- "$word"))
  else
    compopt +o default 2>/dev/null
  fi
}
complete -o default -F _charjax charjax
"""
_ZSH = """
_charjax() {
  local word=$words[CURRENT] before=$words[CURRENT-1] command=$words[2] found
  if [[ $word == --*=* ]]; then before=${word%%=*} word=${word#*=}; compset -P 1 '*='; fi
  if (( CURRENT == 2 )); then command=charjax; fi
  found=$(_charjax_words "$command" "$before" "$word") || return 1
  if [[ -n $found ]]; then compadd -- ${=found}; else _files; fi
}
if [[ $funcstack[1] == _charjax ]]; then _charjax "$@"; else compdef _charjax charjax; fi
"""


def completion_script(shell: str, commands: Mapping[str, Mapping[str, Any]], short: Mapping[str, str]) -> str:
    """Returns a script to be sourced by a shell.

    Args:
        shell: one of `SHELLS`.
        commands: for each command, the flags of its options and their types, without Annotated.
        short: the short forms of flags.
    """
    commands = {
        command: {"--help": bool, **flags, **{brief: flags[flag] for brief, flag in short.items() if flag in flags}}
        for command, flags in commands.items()
    }
    if shell == "tcsh":
        return _tcsh(commands)
    places: dict[str, list[str]] = {}
    for command, flags in commands.items():
        for flag, kind in flags.items():
            places.setdefault(_reply(kind), []).append(f"'{command} {flag}'")
    values = [f"    {'|'.join(found)}) {reply}; return ;;" for reply, found in places.items() if reply]
    options = [f"    {command}\\ -*) echo '{' '.join(flags)}' ;;" for command, flags in commands.items()]
    names = f"{' '.join(commands)} {_GLOBAL_OPTIONS}"
    function = _FUNCTION.format(commands=names, values="\n".join(values), options="\n".join(options))
    return function + _BASH if shell == "bash" else "#compdef charjax\n" + function + _ZSH


def _reply(kind: Any) -> str:
    """Returns shell code for the value of an option, which prints the choices, or fails for a number; else nothing."""
    if choices := _choices(kind):
        return f"echo '{' '.join(choices)}'"
    return "false" if set(_alternatives(kind)) & {int, float} else ""


def _choices(kind: Any) -> list[str]:
    literals = [one for one in _alternatives(kind) if typing.get_origin(one) is typing.Literal]
    return [choice for literal in literals for choice in typing.get_args(literal)]


def _alternatives(kind: Any) -> Iterator[Any]:
    """Yields the members of a union and the elements of a tuple, and any other type itself."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType, tuple):
        for member in typing.get_args(kind):
            yield from _alternatives(member)
    else:
        yield kind


def _tcsh(commands: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a script for tcsh, whose rules do not depend on the command: each offers the options of all of them."""
    choices: dict[str, dict[str, None]] = {}
    for flags in commands.values():
        for flag, kind in flags.items():
            choices.setdefault(flag, {}).update(dict.fromkeys(_choices(kind)))
    names = sorted(flag.removeprefix("--") for flag in choices if flag.startswith("--"))
    values = " ".join(f"'n/{flag}/({' '.join(words)})/'" for flag, words in choices.items() if words)
    return f"complete charjax 'p/1/({' '.join(commands)})/' {values} 'c/--/({' '.join(names)})/' 'p/*/f/'\n"
