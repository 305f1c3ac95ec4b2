"""The memory of a model that learns for ever: a fair sample, of fixed size, of all that it has been shown.

Reservoir sampling keeps each of n images with the same probability, capacity over n, without knowing n beforehand: once
the memory is full, an image that n others came before takes a random place with probability capacity / (n + 1). What
must be forgotten is taken out by its id; the places that become free are filled first, and no removed id comes back.

Vitter, "Random Sampling with a Reservoir", ACM Transactions on Mathematical Software 1985, algorithm R.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from holdfast.data import Images, concat
from holdfast.errors import UserError
from holdfast.models import read_weights, save_tensors

__all__ = ["ID", "LOGITS", "Memory", "identified", "ids_of"]

ID = "id"  # the column, int64 (N,), by which an image is known for ever
LOGITS = "logits"  # the column, float32 (N, K), of what a model made of it when it was stored

_FORMAT = "holdfast-memory-1"
_TENSORS = ("x", "y", "id", "logits", "removed")


@dataclass(frozen=True, kw_only=True, eq=False)
class Memory:
    """Images as they were seen, not augmented, with their ids, labels, and a model's logits at that time.

    It never changes; inserting and removing give another one.

    Args:
        capacity: the most images it holds; with 0 it remembers nothing.
        images: what it holds, one in each place, with the columns `ID` and `LOGITS`.
        seen: how many images it was shown and has not been told to remove.
        removed: ids that may never come back, int64, ascending.
    """

    capacity: int
    images: Images
    seen: int = 0
    removed: Int64[Tensor, " m"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def __post_init__(self) -> None:
        if not isinstance(self.capacity, int) or isinstance(self.capacity, bool) or self.capacity < 0:
            raise UserError(f"memory: capacity must be a whole number of at least 0, got {self.capacity!r}.")

    @classmethod
    def empty(cls, capacity: int, like: Images) -> Memory:
        """A memory with nothing in it.

        Args:
            capacity: the most images it will hold.
            like: images of the kind that will come.
        """
        nothing = like.select(slice(0, 0), "memory")
        columns = {ID: torch.zeros(0, dtype=torch.int64), LOGITS: torch.zeros(0, like.num_classes)}
        return cls(capacity=capacity, images=nothing.but(columns=columns))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def ids(self) -> Int64[Tensor, " n"]:
        """Of the images it holds."""
        return torch.as_tensor(self.images.columns[ID])

    @property
    def logits(self) -> Float[Tensor, "n k"]:
        """That were stored with them."""
        return torch.as_tensor(self.images.columns[LOGITS])

    def insert(self, images: Images, answer: Callable[[Images], Tensor], *, rng: torch.Generator) -> Memory:
        """Show it images, of which it keeps a fair share.

        Args:
            images: with the column `ID`; in the order in which they come.
            answer: gives logits (N, K) of images; asked once, of those that stay, to be kept with them.
            rng: decides who stays.

        Raises:
            UserError: an id is in the memory already, or was removed.
        """
        ids = ids_of(images)
        for what, known in (("is in the memory already", self.ids), ("was removed and cannot come back", self.removed)):
            if (again := torch.isin(ids, known)).any():
                raise UserError(f"memory: image {int(ids[again][0])} {what}.")
        places = list(range(len(self)))  # who is where: below len(self) those held, then the new ones
        for count in range(len(images)):
            if len(places) < self.capacity:
                places.append(len(self) + count)
            elif (place := int(torch.randint(self.seen + count + 1, (), generator=rng))) < self.capacity:
                places[place] = len(self) + count
        staying = sorted(place - len(self) for place in places if place >= len(self))
        if not staying:
            return replace(self, seen=self.seen + len(images))
        new = images.select(staying, "memory")
        new = new.but(columns={ID: ids[staying], LOGITS: answer(new).detach().float().cpu()})
        held = self.images if len(self) else new.select(slice(0, 0))
        where = {len(self) + count: len(self) + row for row, count in enumerate(staying)}
        kept = concat(held, new).select([where.get(place, place) for place in places])
        return replace(self, images=kept, seen=self.seen + len(images))

    def remove(self, ids: Int64[Tensor, " m"]) -> Memory:
        """Take images out for ever, whether it holds them or has only seen them.

        Args:
            ids: of images that it was shown.
        """
        removed = torch.cat([self.removed, ids]).unique()
        left = self.images.select(~torch.isin(self.ids, removed))
        seen = max(len(left), self.seen - (len(removed) - len(self.removed)))
        return replace(self, images=left, seen=seen, removed=removed)

    def fingerprint(self) -> str:
        """A hash of all that it holds and knows: 16 hex digits."""
        digest = hashlib.sha256(f"{self.capacity} {self.seen} {self.images.fingerprint()}".encode())
        for values in (self.ids, self.logits, self.removed):
            digest.update(values.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a ``.safetensors`` file, whole or not at all."""
        tensors = {"x": self.images.x, "y": self.images.y, "id": self.ids, "logits": self.logits}
        save_tensors(
            {**tensors, "removed": self.removed},
            path,
            {"kind": _FORMAT, "capacity": self.capacity, "seen": self.seen, "classes": list(self.images.classes)},
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Memory:
        """Read what `save` wrote.

        Raises:
            UserError: the file cannot be read, or holds no memory.
        """
        file = read_weights(path)
        known, tensors = file.metadata, file.tensors
        if known.get("kind") != _FORMAT or not set(_TENSORS) <= set(tensors):
            raise UserError(f"{path} holds no memory of a continual learner.")
        images = Images(
            x=tensors["x"],
            y=tensors["y"],
            classes=known["classes"],
            columns={ID: tensors["id"], LOGITS: tensors["logits"]},
            name="memory",
        )
        return cls(capacity=int(known["capacity"]), images=images, seen=int(known["seen"]), removed=tensors["removed"])


def identified(images: Images) -> Images:
    """The images with the column `ID`: their places in this set."""
    return images.with_column(ID, torch.arange(len(images)))


def ids_of(images: Images) -> Int64[Tensor, " n"]:
    """The ids of images.

    Raises:
        UserError: they have none, or two are the same.
    """
    if ID not in images.columns:
        raise UserError(f"{images.name}: images of a stream need a column {ID!r}; see holdfast.continual.identified.")
    ids = torch.as_tensor(images.columns[ID]).long()
    if len(ids.unique()) != len(ids):
        raise UserError(f"{images.name}: two images have the same id.")
    return ids
