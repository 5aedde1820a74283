"""Print the completion of a shell: commands, options, and the values they accept.

bash   source <(extproc completion bash)            in ~/.bashrc
zsh    source <(extproc completion zsh)             in ~/.zshrc, after compinit
fish   extproc completion fish > ~/.config/fish/completions/extproc.fish
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import extproc.commands
from extproc.fleet.conversations import WORKLOAD_NAMES

_NAMES = {"--workload": WORKLOAD_NAMES}
"""For each option that accepts a name or a file, the accepted names."""


@dataclass(frozen=True, slots=True)
class _Option:
    flags: tuple[str, ...]
    help: str
    values: tuple[str, ...]
    """Accepted values; empty if the option accepts a file or free text."""
    takes_value: bool
    takes_file: bool = False
    """Whether a file is also accepted."""


@dataclass(frozen=True, slots=True)
class _Command:
    name: str
    help: str
    options: tuple[_Option, ...]
    values: tuple[str, ...]
    """Accepted values of the positional arguments; empty if these are files."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "shell", choices=sorted(_WRITERS), metavar="SHELL", help="shell"
    )


def run(args: argparse.Namespace) -> int:
    """Print the completion script."""
    commands = list(_describe_commands())
    print("\n".join(_WRITERS[args.shell](commands)))
    return 0


def _describe_commands() -> Iterator[_Command]:
    for found in pkgutil.iter_modules(extproc.commands.__path__):
        module = importlib.import_module(f"extproc.commands.{found.name}")
        if not hasattr(module, "run"):
            continue  # a module that other commands use
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        yield _Command(
            found.name.replace("_", "-"),
            (module.__doc__ or "").splitlines()[0].rstrip(".:"),
            tuple(_describe_option(a) for a in parser._actions if a.option_strings),
            tuple(
                str(value)
                for action in parser._actions
                if not action.option_strings
                for value in action.choices or ()
            ),
        )


def _describe_option(action: argparse.Action) -> _Option:
    help_text = "" if action.help in (None, argparse.SUPPRESS) else str(action.help)
    help_text = help_text.partition(";")[0].replace("%(default)s", str(action.default))
    if help_text.count("(") > help_text.count(")"):
        help_text = help_text.rpartition("(")[0].rstrip()
    names = _NAMES.get(action.option_strings[-1], ())
    return _Option(
        tuple(action.option_strings),
        help_text,
        names or tuple(str(value) for value in action.choices or ()),
        action.nargs != 0,
        bool(names),
    )


def _write_bash(commands: list[_Command]) -> Iterator[str]:
    yield "_extproc() {"
    yield "  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}"
    yield "  local words="
    yield "  if [ $COMP_CWORD -eq 1 ]; then"
    names = " ".join(command.name for command in commands)
    yield f"    words={shlex.quote(names + ' --help --version')}"
    yield "  else"
    yield '    case "${COMP_WORDS[1]} $before" in'
    for command in commands:
        for option in command.options:
            for flag in option.flags:
                if option.takes_value:
                    accepted = shlex.quote(" ".join(option.values))
                    yield f"      {shlex.quote(f'{command.name} {flag}')}) "
                    yield f"        words={accepted} ;;"
    yield "      *)"
    yield '        case "${COMP_WORDS[1]}" in'
    for command in commands:
        flags = [flag for option in command.options for flag in option.flags]
        accepted = shlex.quote(" ".join([*command.values, *flags]))
        yield f"          {shlex.quote(command.name)}) words={accepted} ;;"
    yield "        esac ;;"
    yield "    esac"
    yield "  fi"
    yield '  COMPREPLY=($(compgen -W "$words" -- "$word"))'
    yield "}"
    # Complete file names if no word fits.
    yield "complete -o default -o bashdefault -F _extproc extproc"


def _write_zsh(commands: list[_Command]) -> Iterator[str]:
    yield "autoload -U +X bashcompinit && bashcompinit"
    yield from _write_bash(commands)


def _write_fish(commands: list[_Command]) -> Iterator[str]:
    first = "__fish_use_subcommand"
    for command in commands:
        description = shlex.quote(command.help)
        yield f"complete -c extproc -n {first} -f -a {command.name} -d {description}"
    yield f"complete -c extproc -n {first} -f -l version -d 'print the version'"
    yield f"complete -c extproc -n {first} -f -s h -l help -d 'show this help'"
    for command in commands:
        inside = shlex.quote(f"__fish_seen_subcommand_from {command.name}")
        begin = f"complete -c extproc -n {inside}"
        if command.values:
            yield f"{begin} -f -a {shlex.quote(' '.join(command.values))}"
        for option in command.options:
            yield f"{begin} {_fish_option(option)}"


def _fish_option(option: _Option) -> str:
    parts = [
        f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
        for flag in option.flags
    ]
    if option.values:
        only = "-r" if option.takes_file else "-x"
        parts.append(f"{only} -a {shlex.quote(' '.join(option.values))}")
    elif option.takes_value:
        parts.append("-r")
    if option.help:
        parts.append(f"-d {shlex.quote(option.help)}")
    return " ".join(parts)


_WRITERS: dict[str, Callable[[list[_Command]], Iterator[str]]] = {
    "bash": _write_bash,
    "fish": _write_fish,
    "zsh": _write_zsh,
}
