"""The certificate of evidence: what was asked, what was done, and what can be said of whether it worked.

It proves nothing in the mathematical sense: a model that behaves as if it had never seen an image may still carry
traces of it. It says how the model treats the forgotten images beside others that it cannot have seen, before and
after, and, where a retrained model is at hand, how far it is from that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy  # its modules load on first use
import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.models import Features, extract, weights_hash
from holdfast.privacy import Leakage, LossMIA, leakage
from holdfast.run import Run
from holdfast.unlearning.evidence import Forgetting, average_gap, divergences, forgetting

__all__ = ["Certificate", "Losses", "certify_unlearning", "matched_rows"]

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_GRID = np.logspace(-5, 1.5, 40)  # losses at which the distribution functions are given
_CERTAIN = 0.05  # the level of the two-sample test


@dataclass(frozen=True)
class Losses:
    """The losses of forgotten images beside those of unseen images of the same classes.

    Args:
        forgotten, unseen: quantiles (5, 25, 50, 75, 95 %) of the cross-entropy, in nats.
        at: losses, from small to large.
        forgotten_below, unseen_below: shares of the images whose loss is at most that.
        statistic: of Kolmogorov and Smirnov, the largest distance of the two distribution functions, in [0, 1].
        p: chance of a distance as large if both were of one distribution.
        membership: how well a small loss gives the forgotten images away as members.
    """

    forgotten: tuple[float, ...]
    unseen: tuple[float, ...]
    at: tuple[float, ...]
    forgotten_below: tuple[float, ...]
    unseen_below: tuple[float, ...]
    statistic: float
    p: float
    membership: Leakage


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What can be said of an unlearning; plain values, but for nested records of plain values.

    Args:
        request: in words, as the user gave it.
        count, total: images to forget, of so many training images.
        classes: how many of each class.
        digest: of the positions of the images to forget, so that the request can be recognised.
        data: name and fingerprint of the training images.
        method: the spec of the unlearner.
        original, unlearned: hashes of the weights.
        seed: of the unlearning.
        seconds: that it took.
        before, after: what the two models know.
        reference: what a retrained model knows, if there is one.
        reference_from: where it came from.
        reference_seconds: that retraining took, where it was done for this.
        js, kl: divergence of the unlearned model's predictions on the forget set from the retrained model's, in nats.
        losses_before, losses_after: beside unseen images of the same classes, where there are any.
        unseen: how many of these.
        made: when, in words.
    """

    request: str
    count: int
    total: int
    classes: Mapping[str, int]
    digest: str
    data: tuple[str, str]
    method: str
    original: str
    unlearned: str
    seed: int
    seconds: float
    before: Forgetting
    after: Forgetting
    reference: Forgetting | None = None
    reference_from: str = ""
    reference_seconds: float | None = None
    js: float | None = None
    kl: float | None = None
    losses_before: Losses | None = None
    losses_after: Losses | None = None
    unseen: int = 0
    made: str = ""

    @property
    def gap(self) -> float | None:
        """The mean gap of the four measures to the retrained model, in percentage points."""
        return None if self.reference is None else average_gap(self.after, self.reference)

    @property
    def gap_before(self) -> float | None:
        """That of the original model."""
        return None if self.reference is None else average_gap(self.before, self.reference)

    @property
    def traces(self) -> list[str]:
        """What still tells the forgotten images from unseen ones, a sentence each; empty where nothing does."""
        losses = self.losses_after
        if losses is None:
            return []
        found = []
        if losses.p < _CERTAIN:
            lower = losses.forgotten[2] < losses.unseen[2]
            found.append(
                f"The losses of the forgotten images are not distributed as those of unseen images of the same classes "
                f"(Kolmogorov-Smirnov {losses.statistic:.2f}, p {_p(losses.p)}): they are "
                + (
                    "lower, as if the model still knew them."
                    if lower
                    else "higher, as if the model were avoiding them."
                )
            )
        low, high = losses.membership.auc_interval
        if low > 0.5 or high < 0.5:
            found.append(
                f"Membership inference by the loss tells them apart with an AUC of {losses.membership.auc:.3f} "
                f"(95 % interval {low:.3f} to {high:.3f}; 0.5 is chance)."
            )
        return found

    @property
    def sentence(self) -> str:
        """The finding in words."""
        said = [
            f"The model errs on {self.after.ua:.1%} of the {self.count} images to forget ({self.before.ua:.1%} before) "
            f"and is right on {self.after.ta:.1%} of the test images ({self.before.ta:.1%} before)."
        ]
        if self.gap is not None:
            said.append(f"Its mean gap to a retrained model is {self.gap:.1f} points ({self.gap_before:.1f} before).")
        if self.losses_after is None:
            said.append("There are no unseen images of the forgotten classes to compare them with.")
        else:
            said.append("Traces were found." if self.traces else "No trace was found by the tests that were made.")
        return " ".join(said)

    @property
    def limitations(self) -> list[str]:
        """What the certificate does not say."""
        said = [
            "This is evidence, not proof: stronger attacks, with shadow models or on other inputs, may find traces "
            "that these tests do not."
        ]
        if self.reference is None:
            said.append("No retrained model was at hand, so it is not known what forgetting should look like here.")
        if self.losses_after is None:
            said.append("Without unseen images of the forgotten classes, memory cannot be told from ability.")
        return said

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        value = asdict(self)
        for name in ("losses_before", "losses_after"):
            if value[name] is not None:
                leak = value[name]["membership"]
                leak["tpr"] = {f"{fpr:g}": rate for fpr, rate in leak["tpr"].items()}
                leak["tpr_intervals"] = {f"{fpr:g}": list(i) for fpr, i in leak["tpr_intervals"].items()}
        more = {"gap": self.gap, "gap_before": self.gap_before, "traces": self.traces, "limitations": self.limitations}
        return {**value, "classes": dict(self.classes), **more, "sentence": self.sentence}


def certify_unlearning(
    original: nn.Module,
    unlearned: nn.Module,
    train: Images,
    forget: Bool[Tensor, " n"],
    test: Images,
    *,
    request: str,
    method: str,
    seconds: float,
    reference: nn.Module | None = None,
    reference_from: str = "",
    reference_seconds: float | None = None,
    made: str = "",
    run: Run,
) -> Certificate:
    """Compare two models, and a retrained one if there is one.

    Where whole classes are forgotten, test accuracy is that of the other classes, as the published protocol has it.

    Args:
        original, unlearned: before and after.
        train: all training images.
        forget: which of them were to be forgotten, bool (N,).
        test: images that no model was trained on.
        request, method: in words.
        seconds: the unlearning took.
        reference: a model trained without the images to forget.
        reference_from, reference_seconds: where it came from, and how long it took if it was trained for this.
        made: when, in words.
        run: device, batch size, seed.

    Raises:
        UserError: nothing or everything is to be forgotten, or the sets differ in shape or classes.
    """
    if len(forget) != len(train):
        raise UserError(f"certificate: {len(train)} training images need as many marks, got {len(forget)}.")
    kept, gone = train.select(~forget), train.select(forget)
    if not len(kept) or not len(gone):
        raise UserError("certificate: some of the training images must be forgotten, and some kept.")
    left = torch.bincount(kept.y, minlength=train.num_classes) > 0
    of_other_classes = left[test.y]
    others = test.select(of_other_classes) if of_other_classes.any() else test
    rows = matched_rows(gone.y, test.y, run=run)
    known: dict[str, Forgetting] = {}
    on_forget: dict[str, Features] = {}
    losses: dict[str, Losses | None] = {}
    for name, model in {"before": original, "after": unlearned, "reference": reference}.items():
        if model is None:
            continue
        of_gone, of_kept, of_test = (extract(model, images, run=run) for images in (gone, kept, test))
        known[name] = forgetting(
            of_gone, of_kept, of_test.select(of_other_classes) if len(others) < len(test) else of_test
        )
        on_forget[name] = of_gone
        losses[name] = _losses(of_gone, of_test.select(rows), run) if len(rows) > 1 and len(gone) > 1 else None
    js, kl = (
        divergences(on_forget["reference"].logits, on_forget["after"].logits) if reference is not None else (None, None)
    )
    counts = torch.bincount(gone.y, minlength=train.num_classes)
    positions = forget.nonzero().flatten().numpy().astype("<i8")
    return Certificate(
        request=request,
        count=len(gone),
        total=len(train),
        classes={train.classes[k]: int(counts[k]) for k in counts.nonzero().flatten().tolist()},
        digest=hashlib.sha256(positions.tobytes()).hexdigest()[:16],
        data=(train.name, train.fingerprint()),
        method=method,
        original=weights_hash(original),
        unlearned=weights_hash(unlearned),
        seed=run.seed,
        seconds=round(seconds, 2),
        before=known["before"],
        after=known["after"],
        reference=known.get("reference"),
        reference_from=reference_from,
        reference_seconds=reference_seconds,
        js=js,
        kl=kl,
        losses_before=losses["before"],
        losses_after=losses["after"],
        unseen=len(rows),
        made=made,
    )


def matched_rows(wanted: Tensor, available: Tensor, *, run: Run) -> Tensor:
    """Positions in `available` labels whose mix of classes is that of the `wanted` labels; as many as can be had.

    Members and non-members of different classes would be told apart by their class. Empty where a class is missing.
    """
    counts = torch.bincount(wanted, minlength=int(max(wanted.max(), available.max())) + 1).double()
    supply = torch.bincount(available, minlength=len(counts)).double()
    needed = counts > 0
    scale = float((supply[needed] / counts[needed]).min())
    take = (counts * scale + 1e-9).floor().long()
    found = []
    for label in needed.nonzero().flatten().tolist():
        places = (available == label).nonzero().flatten()
        found.append(places[torch.randperm(len(places), generator=run.rng("unseen", label))[: int(take[label])]])
    return torch.cat(found).sort().values


def _losses(gone: Features, unseen: Features, run: Run) -> Losses:
    of_gone, of_unseen = (
        F.cross_entropy(part.logits.double(), part.y, reduction="none").numpy() for part in (gone, unseen)
    )
    test = scipy.stats.ks_2samp(of_gone, of_unseen)
    attack = LossMIA()
    found = leakage(attack.score(gone).numpy(), attack.score(unseen).numpy(), rng=run.numpy_rng("membership"))
    return Losses(
        forgotten=tuple(np.quantile(of_gone, _QUANTILES).tolist()),
        unseen=tuple(np.quantile(of_unseen, _QUANTILES).tolist()),
        at=tuple(_GRID.tolist()),
        forgotten_below=_below(of_gone),
        unseen_below=_below(of_unseen),
        statistic=float(test.statistic),
        p=float(test.pvalue),
        membership=found,
    )


def _below(values: np.ndarray[Any, Any]) -> tuple[float, ...]:
    return tuple((np.searchsorted(np.sort(values), _GRID, side="right") / len(values)).tolist())


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
