"""Concepts: what a model that makes images is to forget, and the kind of method that makes it do so.

A concept is a word or two, such as ``"disc"`` or ``"Van Gogh"``, or a class. Methods differ in what they use beside it:
texts that ask for it, something to draw in its place, pictures of it, pictures to be kept. What is not given is made up
from the rest, where that can be done, by the very model that is to forget.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import torch

from holdfast.data import Images
from holdfast.errors import UserError, one_of
from holdfast.generative import Diffusion
from holdfast.methods import Method
from holdfast.run import Run

__all__ = ["Concept", "ConceptUnlearner", "as_told"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Concept:
    """What is to be forgotten, and what may be used to that end.

    Args:
        name: the words in which texts name it, or the class.
        prompts: texts that ask for it; by default its name alone. A model told classes is asked by the class.
        instead: words to put in its place in a text; where a text does not name the concept, a text of its own. For a
            class another class; by default the next.
        others: texts that ask for what is to be kept; for classes all others by default.
        images: pictures of the concept. For texts their captions stand in the column ``caption``; without it they are
            taken to show the prompts.
        retained: pictures to be kept, with captions or classes.
    """

    name: str
    prompts: tuple[str, ...] = ()
    instead: str = ""
    others: tuple[str, ...] = ()
    images: Images | None = None
    retained: Images | None = None

    def __post_init__(self) -> None:
        for field in ("name", "instead"):
            if not isinstance(getattr(self, field), str):
                raise UserError(f"concept: {field} must be text, got {getattr(self, field)!r}.")
        if not self.name.strip():
            raise UserError("concept: its name is empty, so there is nothing to forget.")
        for field in ("prompts", "others"):
            value = getattr(self, field)
            if isinstance(value, str) or not all(isinstance(text, str) for text in value):
                raise UserError(f"concept: {field} must be a list of texts, got {value!r}.")
            object.__setattr__(self, field, tuple(value))
        for field in ("images", "retained"):
            pictures = getattr(self, field)
            if pictures is not None and not len(pictures):
                raise UserError(f"concept: there are no pictures in {field}; leave it out where there are none.")

    @classmethod
    def of(cls, concept: Concept | str) -> Concept:
        """A name alone will do."""
        return concept if isinstance(concept, Concept) else cls(name=concept)

    @classmethod
    def among(
        cls,
        images: Images,
        name: str,
        *,
        instead: str = "",
        prompts: tuple[str, ...] = (),
        others: tuple[str, ...] = (),
    ) -> Concept:
        """The concept in a set of pictures: those whose caption or class names it, and the others to be kept.

        Args:
            images: with captions in the column ``caption``, or of a class of that name.
            name, instead, others: see `Concept`.
            prompts: by default the captions of those pictures, at most a hundred.

        Raises:
            UserError: none names it, or all do.
        """
        if "caption" in images.columns:
            captions = [str(caption) for caption in np.asarray(images.columns["caption"]).tolist()]
            named = torch.tensor([re.search(_word(name), caption, re.IGNORECASE) is not None for caption in captions])
            naming = (caption for caption, is_so in zip(captions, named.tolist(), strict=True) if is_so)
            prompts = prompts or tuple(dict.fromkeys(naming))[:100]
        elif name in images.classes:
            named = images.y == images.classes.index(name)
        else:
            raise one_of("class", name, images.classes)
        if not named.any() or named.all():
            found = "no picture" if not named.any() else "every picture"
            raise UserError(f"{images.name}: {found} is of {name!r}, so there is nothing to tell it from.")
        forget, keep = images.select(named, "pictures to forget"), images.select(~named, "pictures to be kept")
        return cls(name=name, instead=instead, prompts=prompts, others=others, images=forget, retained=keep)

    def asked(self, model: Diffusion) -> tuple[str, ...]:
        """Texts, or the class, that ask a model for the concept.

        Raises:
            UserError: the model does not know a word or the class, or is told nothing at all.
        """
        if model.conditioning == "none":
            raise UserError("this model makes images of no kind in particular, so there is no concept to forget.")
        prompts = (self.prompts or (self.name,)) if model.conditioning == "text" else (self.name,)
        model.context(prompts)
        return prompts

    def replaced(self, model: Diffusion, prompts: tuple[str, ...]) -> tuple[str, ...]:
        """The same texts with something else in the concept's place.

        Raises:
            UserError: for texts, nothing is said to stand in its place.
        """
        if model.conditioning == "class":
            following = model.classes[(model.classes.index(self.name) + 1) % len(model.classes)]
            instead = self.instead or following
            if instead not in model.classes:
                raise one_of("class", instead, model.classes)
            if instead == self.name:
                raise UserError(f"concept: {self.name!r} cannot stand in its own place.")
            return (instead,) * len(prompts)
        if not self.instead:
            raise UserError(f"concept: say what is to be drawn in the place of {self.name!r} (instead=...).")
        found = tuple(self._without(text) for text in prompts)
        model.context(found)
        return found

    def kept(self, model: Diffusion) -> tuple[str, ...]:
        """Texts, or the classes, of what is to be kept.

        Raises:
            UserError: for texts, there are none.
        """
        if model.conditioning == "class":
            return tuple(name for name in self.others or model.classes if name != self.name)
        captions = () if self.retained is None else as_told(model, self.retained).classes
        if not (self.others or captions):
            raise UserError(
                f"concept: say what is to be kept beside {self.name!r}, by texts (others=...) or pictures "
                "(retained=...) with captions."
            )
        return self.others or captions

    def _without(self, text: str) -> str:
        changed, count = re.subn(_word(self.name), lambda _: self.instead, text, flags=re.IGNORECASE)
        return changed if count else self.instead


def _word(name: str) -> str:
    return rf"\b{re.escape(name)}\b"


def as_told(model: Diffusion, images: Images, prompts: tuple[str, ...] = ()) -> Images:
    """Images whose classes are what the model is told of them, so that ``model.context(classes)[y]`` tells it.

    Args:
        model: told classes or texts.
        images: with a column ``caption`` where it is told texts.
        prompts: texts for images without captions, in turn.

    Raises:
        UserError: neither captions nor prompts, or images of another shape, or of unknown classes.
    """
    if images.shape != model.image_shape:
        shapes = ["x".join(map(str, shape)) for shape in (images.shape, model.image_shape)]
        raise UserError(f"{images.name}: the images are {shapes[0]}, and the model makes images of {shapes[1]}.")
    if model.conditioning == "class":
        model.context(images.classes)
        return images.but(columns={})
    if "caption" in images.columns:
        captions = [str(caption) for caption in np.asarray(images.columns["caption"]).tolist()]
        found = tuple(dict.fromkeys(captions))
        places = {caption: place for place, caption in enumerate(found)}
        y = torch.tensor([places[caption] for caption in captions])
    elif prompts:
        found, y = prompts, torch.arange(len(images)) % len(prompts)
    else:
        raise UserError(f"{images.name}: to be shown to a model told texts, the images need a column 'caption'.")
    model.context(found)
    return images.but(y=y, classes=found, columns={})


class ConceptUnlearner(Method, kind="concept-unlearner"):
    """Makes a model that makes images forget a concept."""

    @abstractmethod
    def __call__(self, model: Diffusion, concept: Concept | str, *, run: Run) -> Diffusion:
        """Return a new model, in evaluation mode, that has forgotten; the given one is left as it was.

        Args:
            model: told texts or classes.
            concept: what to forget; its name, or a `Concept` with more to go by.
            run: device, seed, folder.
        """
