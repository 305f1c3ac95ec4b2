"""The command line. Thin: every command reads its options, calls the library, and prints.

Exit codes: 0 done; 1 done, and the answer is no (a policy gate, a proof that did not hold); 2 the request cannot be
carried out as given; 130 interrupted. A request that can be resumed says so.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from holdfast.cli import (
    analyse,
    attack,
    audit,
    compare,
    data,
    generate,
    generate_unlearn,
    harden,
    learn,
    membership,
    methods,
    ood,
    parse,
    prove,
    train,
    transfer,
    unlearn,
    version,
    zoo,
)
from holdfast.errors import UserError

__all__ = ["app", "main"]

app = typer.Typer(
    name="holdfast",
    help="Audit PyTorch classifiers along every axis of machine-learning safety, and mend what the audit finds.\n\n"
    "Exit codes: 0 done; 1 done, and the answer is no (--gate, prove); 2 a mistake in the request; 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with its ends made plain: one sentence and an exit code instead of a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except UserError as error:
            # what libraries say of a broken file may come in several lines
            typer.echo(f"holdfast: {' '.join(str(error).split())}", err=True)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            typer.echo(
                "holdfast: interrupted. Finished work is kept where --out was given: run the same command to go on.",
                err=True,
            )
            raise SystemExit(130) from None
        except BrokenPipeError:
            # the reader of our output (head, less) left early; keep Python from complaining about it at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None

    return run


_COMMANDS: dict[str, Callable[..., Any]] = {
    "audit": audit.audit_command,
    "train": train.train_command,
    "attack": attack.attack_command,
    "harden": harden.harden_command,
    "transfer": transfer.transfer_command,
    "analyse": analyse.analyse_command,
    "membership": membership.membership_command,
    "learn": learn.learn_command,
    "unlearn": unlearn.unlearn_command,
    "prove": prove.prove_command,
    "list": methods.list_command,
    "show": methods.show_command,
    "compare": compare.compare_command,
    "version": version.version_command,
}
_GROUPS: dict[str, tuple[str, dict[str, Callable[..., Any]]]] = {
    "data": ("Look at data: sizes, classes, and pictures.", {"show": data.show_data, "sheet": data.sheet}),
    "ood": (
        "Notice inputs that belong to none of a model's classes.",
        {"fit": ood.fit_monitor_command, "score": ood.score_command},
    ),
    "generate": (
        "Train models that make images, make them, and make a model forget what it is not to draw.",
        {
            "train": generate.train_generator,
            "sample": generate.sample_generator,
            "unlearn": generate_unlearn.unlearn_concept,
            "attack": generate_unlearn.attack_concept,
        },
    ),
    "parse": (
        "Tell from adversarial images what kind of model they were made on.",
        {"train": parse.train_parser, "read": parse.read_parser},
    ),
    "zoo": ("The bundled models, with their measured accuracy.", {"list": zoo.list_zoo, "show": zoo.show_zoo}),
}

for _name, _command in _COMMANDS.items():
    app.command(_name)(guarded(_command))
for _name, (_help, _commands) in _GROUPS.items():
    _group = typer.Typer(help=_help, no_args_is_help=True)
    for _verb, _command in _commands.items():
        _group.command(_verb)(guarded(_command))
    app.add_typer(_group, name=_name)


def main() -> None:
    """Run the command line and exit."""
    app()
