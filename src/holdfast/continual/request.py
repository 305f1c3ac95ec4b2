"""A request: images to learn, images to forget, or both; and requests in words, one after the other in a YAML file.

- learn: class=0,1
- learn: class=2,3
- forget: random=0.05 of class=0,1
- learn: class=4,5
  forget: class=3
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from jaxtyping import Bool, Int64
from torch import Tensor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from holdfast.continual.memory import identified, ids_of
from holdfast.data import Images
from holdfast.errors import UserError, did_you_mean
from holdfast.run import Run
from holdfast.unlearning import forget_mask

__all__ = ["Request", "check_stream", "read_requests"]

_VERBS = ("learn", "forget")
_FILES = (".csv", ".txt")
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """What is asked of a model: to learn some images, to forget others, or both at once.

    Args:
        learn: images it has not seen, with the column `ID`; see `identified`.
        forget: images it has learnt, with the column `ID`.
        title: the request in words.

    Raises:
        UserError: nothing is asked, ids are missing, the same image is to be learnt and forgotten, or the images are
            not of one kind.
    """

    learn: Images | None = None
    forget: Images | None = None
    title: str = ""

    def __post_init__(self) -> None:
        parts = [part for part in (self.learn, self.forget) if part is not None]
        if not parts:
            raise UserError("request: nothing is asked; it takes images to learn, images to forget, or both.")
        if not all(map(len, parts)):
            raise UserError(f"request: there are no images to {'learn' if parts[0] is self.learn else 'forget'}.")
        both = torch.cat([ids_of(part) for part in parts])
        if len(both.unique()) < len(both):
            raise UserError("request: the same image is to be learnt and to be forgotten.")
        if len({(part.shape, part.classes) for part in parts}) > 1:
            raise UserError("request: the images to learn and to forget differ in shape or classes.")
        if not self.title:
            counts = zip(_VERBS, (self.learn, self.forget), strict=True)
            title = ", ".join(f"{verb} {len(part)} images" for verb, part in counts if part is not None)
            object.__setattr__(self, "title", title)


def check_stream(requests: list[Request], known: Int64[Tensor, " n"] | None = None) -> None:
    """Verify that every image is learnt at most once, and forgotten at most once and after it was learnt.

    Args:
        requests: in their order.
        known: ids that were learnt before; ``None`` where they are not known, and so any may be forgotten.

    Raises:
        UserError: one is not; with the number of the request, counted from 1.
    """
    learnt = torch.zeros(0, dtype=torch.int64) if known is None else known
    forgotten = torch.zeros(0, dtype=torch.int64)
    for number, request in enumerate(requests, 1):
        if request.forget is not None:
            ids = ids_of(request.forget)
            if (again := torch.isin(ids, forgotten)).any():
                raise UserError(f"request {number}: image {int(ids[again][0])} was forgotten before.")
            if known is not None and (new := ~torch.isin(ids, learnt)).any():
                raise UserError(f"request {number}: image {int(ids[new][0])} is to be forgotten, but was not learnt.")
            forgotten = torch.cat([forgotten, ids])
        if request.learn is not None:
            ids = ids_of(request.learn)
            for what, before in (("was forgotten, and stays so", forgotten), ("was learnt before", learnt)):
                if (again := torch.isin(ids, before)).any():
                    raise UserError(f"request {number}: image {int(ids[again][0])} {what}.")
            learnt = torch.cat([learnt, ids])


def read_requests(path: str | os.PathLike[str], images: Images, *, run: Run) -> list[Request]:
    """Read a stream of requests from a YAML file.

    Each entry has ``learn``, ``forget``, or both, with what `holdfast.unlearning.forget_mask` takes: ``class=0,1``,
    ``COLUMN=VALUE``, ``random=0.05``, or a ``.csv`` file of positions; ``random=0.05 of class=2,3`` narrows one down by
    another, and ``all`` is all. Words are understood among the images that can be meant: to learn, those that were
    never learnt; to forget, those that were learnt and not forgotten.

    Args:
        path: the file.
        images: the training set; an image's id is its place there.
        run: for what is drawn at random.

    Raises:
        UserError: the file cannot be read, or a request is empty, or names nothing, or what it cannot name; with file
            and line.
    """
    images = identified(images)
    new = torch.ones(len(images), dtype=torch.bool)
    held = torch.zeros(len(images), dtype=torch.bool)
    found = []
    for number, (line, words) in enumerate(_entries(Path(path))):
        chosen = {}
        for verb, pool in (("learn", new), ("forget", held)):
            if verb not in words:
                continue
            at, text = words[verb]
            try:
                chosen[verb] = _named(text, images, pool, verb, run.child(f"request {number}"))
            except UserError as error:
                message = str(error).removeprefix("forget: ")
                raise UserError(f"{path}:{at}: {verb}: {message}") from None
        if not chosen:
            raise UserError(f"{path}:{line}: this request is empty; it takes learn, forget, or both.")
        if "learn" in chosen:
            new, held = new & ~chosen["learn"], held | chosen["learn"]
        if "forget" in chosen:
            held = held & ~chosen["forget"]
        found.append(
            Request(
                **{verb: images.select(mask, verb) for verb, mask in chosen.items()},
                title=", ".join(f"{verb} {words[verb][1]}" for verb in chosen),
            )
        )
    return found


def _named(text: str, images: Images, pool: Bool[Tensor, " n"], verb: str, run: Run) -> Bool[Tensor, " n"]:
    """The images of the pool that the words name."""
    for narrowed in reversed(text.split(" of ")):
        pool = _narrowed(narrowed.strip(), images, pool, verb, run)
    return pool


def _narrowed(text: str, images: Images, pool: Bool[Tensor, " n"], verb: str, run: Run) -> Bool[Tensor, " n"]:
    if text == "all":
        return _some(pool, text, images, verb)
    if text.lower().endswith(_FILES):
        mask = forget_mask(text, images, run=run)
        if (mask & ~pool).any():
            place = int((mask & ~pool).nonzero()[0])
            raise UserError(f"{text} names image {place}, which {_WHY[verb]}.")
        return mask
    name, _, value = text.partition("=")
    if name == "class":
        # One class after the other, for together they may be all there are.
        masks = [forget_mask(f"class={part}", images, run=run) for part in value.split(",")]
        return _some(pool & torch.stack(masks).any(0), text, images, verb)
    if not pool.any():
        return _some(pool, text, images, verb)
    mask = torch.zeros_like(pool)
    mask[pool] = forget_mask(text, images.select(pool), run=run)
    return mask


_WHY = {
    "learn": "was learnt, or forgotten, before",
    "forget": "was not learnt before, or is forgotten already",
}


def _some(mask: Tensor, text: str, images: Images, verb: str) -> Tensor:
    if not mask.any():
        raise UserError(f"{text!r} names no image of {images.name} but such as {_WHY[verb].replace('was', 'were', 1)}.")
    return mask


def _entries(path: Path) -> list[tuple[int, dict[str, tuple[int, str]]]]:
    """For each request its line, and by verb the line and the words."""
    tree = _read(path)
    if not isinstance(tree, SequenceNode) or not tree.value:
        raise UserError(f"{path}: a stream consists of lines such as '- learn: class=0,1'.")
    return [(node.start_mark.line + 1, _entry(path, node)) for node in tree.value]


def _entry(path: Path, node: Node) -> dict[str, tuple[int, str]]:
    line = node.start_mark.line + 1
    if not isinstance(node, MappingNode):
        raise UserError(f"{path}:{line}: a request is a line such as 'learn: class=0,1'.")
    words: dict[str, tuple[int, str]] = {}
    for key, value in node.value:
        at = key.start_mark.line + 1
        if key.value not in _VERBS:
            hint = did_you_mean(str(key.value), _VERBS) or " It takes learn, forget, or both."
            raise UserError(f"{path}:{at}: {key.value!r} is nothing that a request can ask.{hint}")
        if key.value in words:
            raise UserError(f"{path}:{at}: {key.value!r} is given twice in one request.")
        if not isinstance(value, ScalarNode) or not value.value.strip():
            raise UserError(f"{path}:{at}: {key.value!r} takes words such as class=0,1.")
        words[key.value] = at, value.value.strip()
    return words


def _read(path: Path) -> Node | None:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path} is too large for a stream of requests ({path.stat().st_size:,} bytes).")
        tree: Node | None = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}.") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(
            f"{where}: this is not YAML: {getattr(error, 'problem', None) or type(error).__name__}."
        ) from None
    return tree
