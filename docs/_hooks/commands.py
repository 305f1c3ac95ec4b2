"""The command-line reference, read from the command tree that `holdfast --help` prints."""

from __future__ import annotations

import re
from typing import Any

import typer

from holdfast.cli import app

from . import markdown

__all__ = ["page"]

_INTRO = """\
This page is generated from the commands themselves; `holdfast COMMAND --help` says the same.
What the exit codes mean stands in [Exit codes](../exit-codes.md).
"""
# typer ends an option's help with what it knows of its value.
_EXTRA = re.compile(r"\s*\[(?P<extra>(?:required|default: .*|env var: .*|\d*<=?x.*|x[<>]=?.*)[^\[]*)\]\s*$", re.DOTALL)
_COMPLETION = """\
## Shell completion

`holdfast --install-completion` sets up completion for the shell it is called from;
`holdfast --show-completion` prints the script instead.
"""


def page() -> str:
    """The reference of all commands."""
    root = typer.main.get_command(app)
    # the settings of the root, such as the names of --help, hold for all below
    ctx = typer.Context(root, info_name="holdfast", **root.context_settings)
    return "\n".join(["# Command line", "", root.help or "", "", _INTRO, *_children(root, ctx), _COMPLETION])


def _children(group: Any, ctx: typer.Context) -> list[str]:
    parts: list[str] = []
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        below = typer.Context(command, parent=ctx, info_name=name)
        if hasattr(command, "list_commands"):
            parts += [f"## holdfast {name}", "", command.help or "", "", *_children(command, below)]
        else:
            parts.append(_command(command, below))
    return parts


def _command(command: Any, ctx: typer.Context) -> str:
    depth = "##" if ctx.command_path.count(" ") == 1 else "###"
    usage = " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])
    records: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is not None:
            records[parameter.param_type_name].append(record)
    tables = [
        markdown.table((noun, "meaning", ""), (_row(*record) for record in records[noun]))
        for noun in ("argument", "option")
    ]
    return "\n".join(
        [f"{depth} {ctx.command_path}", "", command.help or "", "", markdown.fence("text", usage), *tables]
    )


def _row(names: str, text: str) -> tuple[str, str, str]:
    found = _EXTRA.search(text)
    return f"`{names}`", _EXTRA.sub("", text), found["extra"].replace("default: ", "default ") if found else ""
