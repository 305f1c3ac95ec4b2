"""How far apart classes are on a tree: taking a cat for a dog is a smaller mistake than taking it for a lorry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.errors import UserError

__all__ = ["CIFAR10_TREE", "Tree", "tree_distances"]

#: For each class, one or more paths of nodes from the root to the class, such as ``"entity/animal/mammal/cat"``.
Tree = Mapping[str, Sequence[str]]

CIFAR10_TREE: Tree = {
    "airplane": ["entity/artefact/air/airplane"],
    "automobile": ["entity/artefact/land/automobile"],
    "bird": ["entity/animal/bird"],
    "cat": ["entity/animal/mammal/carnivore/cat"],
    "deer": ["entity/animal/mammal/ungulate/deer"],
    "dog": ["entity/animal/mammal/carnivore/dog"],
    "frog": ["entity/animal/frog"],
    "horse": ["entity/animal/mammal/ungulate/horse"],
    "ship": ["entity/artefact/sea/ship"],
    "truck": ["entity/artefact/land/truck"],
}


def tree_distances(
    classes: Sequence[str],
    tree: Tree | None = None,
    *,
    weighting: Literal["halving", "equal"] = "halving",
    across: Literal["nearest", "mean"] = "nearest",
) -> Float[Tensor, "k k"]:
    """The distance of every two classes: the weights of the nodes that are on the path of one but not of the other.

    Args:
        classes: names.
        tree: paths to each of them; a path's last node must be its own. Without a tree all distances are 1.
        weighting: ``"halving"`` gives a node at depth d, the root's being 0, the weight 2^(1 - d); ``"equal"`` gives 1.
        across: of several pairs of paths the ``"nearest"`` counts, or the ``"mean"``.

    Returns:
        Float64 (K, K), symmetric, 0 on the diagonal alone.

    Raises:
        UserError: a class has no path, or shares one.
    """
    if tree is None:
        return 1 - torch.eye(len(classes), dtype=torch.float64)
    paths = []
    for name in classes:
        if not tree.get(name) or isinstance(tree[name], str):
            raise UserError(f"the tree of classes must have a list of paths for {name!r}, got {tree.get(name)!r}.")
        paths.append([path.split("/") for path in tree[name]])
    if len({tuple(path) for several in paths for path in several}) < sum(map(len, paths)):
        raise UserError("two classes have the same path in the tree of classes.")

    def weight(depth: int) -> float:
        return 2.0 ** (1 - depth) if weighting == "halving" else 1.0

    def apart(a: list[str], b: list[str]) -> float:
        return sum(weight(d) for x, y in ((a, b), (b, a)) for d, node in enumerate(x) if node not in y)

    def between(i: int, j: int) -> float:
        all_pairs = [apart(a, b) for a in paths[i] for b in paths[j]]
        return min(all_pairs) if across == "nearest" else sum(all_pairs) / len(all_pairs)

    rows = [[0.0 if i == j else between(i, j) for j in range(len(classes))] for i in range(len(classes))]
    return torch.tensor(rows, dtype=torch.float64)
