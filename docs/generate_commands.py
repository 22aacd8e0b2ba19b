"""Writes ``commands.md`` from the commands' own arguments: ``python docs/generate_commands.py`` (``make docs`` does).

What a command is for is written in its ``help``, so that ``--help`` and the page cannot differ.
"""

from __future__ import annotations

from argparse import SUPPRESS, Action, ArgumentParser, HelpFormatter, _SubParsersAction
from collections.abc import Iterator
from pathlib import Path

from django.core.management.base import BaseCommand

from django_raftsqlite.management.commands import raft, runcluster

PAGE = Path(__file__).with_name("commands.md")

HEAD = """# Commands

<!-- Written by generate_commands.py from the commands themselves. -->

They need `"django_raftsqlite"` in `INSTALLED_APPS`. Each takes Django's own options, too: `--settings`,
`--pythonpath`, `--traceback`, `--verbosity`, `--no-color` and `--force-color`; for `manage.py raft` the last four
stand before the verb.
"""


def page() -> str:
    """The text of the page."""
    parts = [HEAD, *_command("raft", raft.Command()), *_command("runcluster", runcluster.Command())]
    return "\n".join(parts)


def _command(name: str, command: BaseCommand) -> Iterator[str]:
    parser = command.create_parser("manage.py", name)
    general = {action.dest for action in BaseCommand().create_parser("manage.py", name)._actions}
    yield f"## {name}\n\n{command.help}\n"
    yield from _parser(name, parser, general)


def _parser(name: str, parser: ArgumentParser, without: set[str]) -> Iterator[str]:
    verbs = [action for action in parser._actions if isinstance(action, _SubParsersAction)]
    if not verbs:
        yield from _arguments(f"manage.py {name}", parser, without)
    for action in verbs:
        helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for verb, sub_parser in action.choices.items():
            yield f"### {name} {verb}\n\n{_sentence(helps[verb])}\n"
            yield from _parser(f"{name} {verb}", sub_parser, {"help"})


def _arguments(usage: str, parser: ArgumentParser, without: set[str]) -> Iterator[str]:
    shown = [action for action in parser._actions if action.dest not in without and action.help != SUPPRESS]
    positional = [action for action in shown if not action.option_strings]
    options = [action for action in shown if action.option_strings]
    yield f"```\n{' '.join([usage, *map(_usage, positional), *map(_usage, options)])}\n```\n"
    if shown:
        yield "| argument | |\n|---|---|"
        for action in (*positional, *options):
            told = HelpFormatter(parser.prog)._expand_help(action) if action.help else ""
            yield f"| `{_name(action)}` | {told} |"
        yield ""


def _usage(action: Action) -> str:
    needed = action.required if action.option_strings else action.nargs != "?"
    return _name(action) if needed else f"[{_name(action)}]"


def _name(action: Action) -> str:
    value = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper())
    if action.nargs == "+":
        value = f"{value} ..."
    if not action.option_strings:
        return str(value)
    return action.option_strings[-1] if action.nargs == 0 else f"{action.option_strings[-1]} {value}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


if __name__ == "__main__":
    PAGE.write_text(page())
