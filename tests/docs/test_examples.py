"""Whatever the documentation shows, works: its Python runs, its commands exist, and those of the tutorial run too.

A page is played from top to bottom in a folder of its own. A block with a title is a file of that name; a block of
Python without one is run, in one namespace for the page; a line `holdfast ...` of a bash block is a command.
"""

import dataclasses
import functools
import re
import shlex
import sys

import pytest
import typer
from typer.testing import CliRunner

from holdfast import catalog
from holdfast.audit import profiles
from holdfast.audit.check import Check, all_checks
from holdfast.cli import app
from holdfast.data.digits import Digits
from holdfast.errors import UserError
from holdfast.methods import Method
from holdfast.proofs import proof, proofs

BLOCK = re.compile(r'^( *)```(\w+)(?: title="([^"]+)")?\n(.*?)^\1```', re.DOTALL | re.MULTILINE)
# Pages whose commands are run, not only read; the others name files of the reader's.
PLAYED = (
    "index.md",
    "tutorial.md",
    "policy.md",
    "concepts.md",
    "continual.md",
    "exit-codes.md",
    "ood.md",
    "privacy.md",
    "proofs.md",
    "robustness.md",
    "unlearning.md",
)


def blocks(page):
    """The code blocks of a page: language, title, text without the fence's indentation."""
    for indent, language, title, text in BLOCK.findall(page):
        yield language, title, re.sub(f"^{indent}", "", text, flags=re.MULTILINE)


def commands(page):
    """The words of each holdfast command in the blocks of a page."""
    for language, _, text in blocks(page):
        if language in ("bash", "yaml"):
            for line in text.replace("\\\n", " ").splitlines():
                line = line.strip().removeprefix("run:").strip()
                if line.startswith("holdfast "):
                    yield shlex.split(line, comments=True)[1:]


@functools.cache
def tree():
    """All commands."""
    return typer.main.get_command(app)


def parse(words):
    """Resolve a command and let it read its options, as the shell would, without carrying it out."""
    command = tree()
    ctx = typer.Context(command, info_name="holdfast")
    while hasattr(command, "list_commands"):
        name, *words = words
        below = command.get_command(ctx, name)
        assert below is not None, name
        command, ctx = below, typer.Context(below, parent=ctx, info_name=name)
    return command.make_context(ctx.info_name, list(words), parent=ctx.parent)


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A reader in an empty folder, whose methods, checks and proofs vanish with it, and whose audits are tiny."""
    catalog.load_all(), all_checks(), proofs()  # what is found once is not looked for again
    module = sys.modules[proof.__module__]
    monkeypatch.setattr(Method, "registry", dict(Method.registry))
    monkeypatch.setattr(Check, "registry", dict(Check.registry))
    monkeypatch.setattr(module, "_PROOFS", dict(module._PROOFS))
    tiny = dataclasses.replace(
        profiles.PROFILES["quick"], test_images=64, train_images=64, sanity_images=16, corruption_images=16,
        severities=(5,), ood_images=32, attack_images=8, pgd_steps=2, pgd_restarts=1, square_images=4,
        square_queries=10, curve_images=4, curve_steps=2, masking_images=8, fault_images=16, fault_trials=1,
        latency_repeats=2, resamples=50, gallery=1,
    )  # fmt: skip
    monkeypatch.setitem(profiles.PROFILES, "quick", tiny)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def play(page, folder, *, with_commands):
    """Do what a page says, in order."""
    names = {"__name__": "reader"}
    for language, title, text in blocks(page):
        if title:
            (folder / title).write_text(text)
        elif language == "python":
            exec(compile(text, "<page>", "exec"), names)  # the documentation's own code
        elif language == "bash" and with_commands:
            for words in commands(f"```bash\n{text}```"):
                if "my.py:make" in words and not (folder / "my.py").exists():
                    continue
                result = CliRunner().invoke(app, words)
                if result.exception is not None and not isinstance(result.exception, SystemExit):
                    raise result.exception
                # what the answer is depends on the scale; that there is one does not
                allowed = (0, 1) if "--gate" in words or words[0] == "prove" else (0,)
                assert result.exit_code in allowed, (words, result.output)


PAGES = (
    "adding-a-check.md",
    "adding-a-method.md",
    "concepts.md",
    "continual.md",
    "deployed.md",
    "exit-codes.md",
    "generative.md",
    "index.md",
    "ood.md",
    "policy.md",
    "privacy.md",
    "proofs.md",
    "robustness.md",
    "tutorial.md",
    "unlearning.md",
)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_followed_from_top_to_bottom(name, written, reader):
    play(written[name], reader, with_commands=name in PLAYED)


def test_an_audit_writes_the_files_that_the_tutorial_names(written, reader):
    table = written["tutorial.md"].split("The folder `audits/before` then holds:")[1].split("\n\n")[1]
    named = re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE)
    words = ["audit", "--model", "zoo:digits-convnet", "--data", "digits", "--only", "accuracy", "--out", "out"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert len(named) == 4
    assert [name for name in named if not (reader / "out" / name).is_file()] == []


def test_every_page_with_python_is_followed(written):
    assert {n for n, page in written.items() if any(b[0] == "python" for b in blocks(page))} <= set(PAGES)


def test_every_command_anywhere_exists_with_its_options(written, generated):
    found = [words for page in (*written.values(), *generated.values()) for words in commands(page)]
    assert len(found) > len(catalog.cards(kind="attack"))
    for words in found:
        parse(words)


def test_a_command_that_does_not_exist_would_be_noticed():
    for wrong in (["audti"], ["audit", "--modle", "x", "--data", "digits"], ["data", "shwo", "digits"]):
        with pytest.raises(Exception, match=r"."):
            parse(wrong)


@pytest.mark.parametrize("id", [card.id for card in catalog.cards()])
def test_the_example_of_every_method_runs(id, docs, reader, monkeypatch):
    from _hooks import usage

    whole = Digits.__call__

    def few(self, *, run):
        """A third of the images, and eight to attack: what an example does takes a third of the time."""
        data = whole(self, run=run)
        every = {"train": 3, "val": 3, "test": 56 if catalog.describe(id).kind == "attack" else 3}
        return dataclasses.replace(data, **{s: getattr(data, s).select(slice(None, None, k)) for s, k in every.items()})

    monkeypatch.setattr(Digits, "__call__", few)
    code = usage.python(catalog.describe(id), catalog.find(id, Method))
    try:
        exec(compile(code, f"<{id}>", "exec"), {"__name__": "reader"})  # the documentation's own code
    except UserError as error:
        # a method that stands on an extra says which, and its page repeats the sentence
        if "pip install 'holdfast[" not in str(error):
            raise
