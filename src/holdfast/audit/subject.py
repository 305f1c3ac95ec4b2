"""What is audited, and what several checks need of it: worked out once, when first asked for.

One pass over a split feeds accuracy, calibration, detection and membership alike; predictions on corrupted images feed
the corruption table and the calibration under shift. All of it goes through the `Store`, so a killed audit does not
repeat it.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from holdfast.audit.policy import Policy
from holdfast.audit.predictions import Attacked, Predictions
from holdfast.audit.profiles import Profile
from holdfast.audit.store import Store
from holdfast.data import CORRUPTIONS, Data, Images, corrupt, ood_sets, to_float
from holdfast.data.order import fair_order
from holdfast.errors import UserError, one_of
from holdfast.evasion import Evasion
from holdfast.evasion.adaptive import informed
from holdfast.evasion.autoattack import Unreliable
from holdfast.evasion.masking import Sign, masking_signs
from holdfast.models import Features, extract, frozen, images_per_pass, only_answers, queryables
from holdfast.ood import FittedDetector, NetworkDetector, detecting, fit_detectors, observe
from holdfast.run import Run

__all__ = ["PART", "SHIFTED", "UNKNOWN", "Subject"]

PART = 256  # images per part of an attack; fixed, so that resumed audits are cut alike
ASKED_PART = 64  # of a model whose every answer costs: less is lost by a kill
ALL_UNKNOWN = 10_000  # images of a set that is drawn, when the profile asks for all there are
UNKNOWN = "ood/"  # names of splits made of unknown images begin so
SHIFTED = "shifted"  # the split of corrupted test images


class Subject:
    """A model, its data, and the demands made on them.

    Args:
        model: images in [0, 1] to logits.
        data: with at least a test split.
        profile: how much is measured.
        policy: the limits; the threat it names sets the strength of attacks.
        run: gives device, batch size and random streams.
        store: keeps what is expensive.

    Attributes:
        branch: which part of the model is asked, where it is not the whole; see `detecting`.
    """

    def __init__(self, model: nn.Module, data: Data, *, profile: Profile, policy: Policy, run: Run, store: Store):
        self.model, self.data = model, data
        self.profile, self.policy, self.store = profile, policy, store
        # The store alone writes to disk, and the audit has a progress bar of its own.
        self.run = run.but(out=None, progress=False, scope=(*run.scope, "audit"))
        self._orders: dict[str, Tensor | None] = {}
        self._images: dict[str, Images] = {}
        self._predictions: dict[str, Predictions] = {}
        self.branch = ""

    @functools.cached_property
    def detecting(self) -> Subject:
        """The same, asked through the branch that the model keeps for what is of no class; itself without one."""
        branch = detecting(self.model)
        if branch is self.model:
            return self
        other = Subject(branch, self.data, profile=self.profile, policy=self.policy, run=self.run, store=self.store)
        other.run, other.branch = self.run, "detection"
        return other

    def lacks(self, needs: Iterable[str]) -> str:
        """Why this model cannot be asked what a check asks; empty where it can.

        Args:
            needs: what the check needs of the model, see `Check.needs`.
        """
        missing = {"weights": self.only_answers, "gradients": self.only_answers, "scores": self.labels_only}
        for need in needs:
            if missing[need]:
                gives = "gives labels" if need == "scores" else "answers queries"
                return f"It needs the {need}, but this model only {gives}."
        return ""

    @functools.cached_property
    def only_answers(self) -> bool:
        """Whether the model has neither weights nor gradients to look at."""
        return only_answers(self.model)

    @functools.cached_property
    def labels_only(self) -> bool:
        """Whether the model answers with labels, which give attacks on scores nothing to follow."""
        return any(part.labels_only for part in queryables(self.model))

    # --- images -------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def unknown(self) -> dict[str, tuple[str, Images]]:
        """The sets of images that belong to no class, by name, each with its kind, ``near`` or ``far``."""
        limit = self.profile.ood_images or ALL_UNKNOWN
        found = ood_sets(self.data, self.run, count=limit)
        return {name: (kind, images.select(slice(0, limit))) for name, (images, kind) in found.items() if len(images)}

    @functools.cached_property
    def shifted(self) -> Images:
        """The first test images, each corrupted in one way; corruptions and severities take turns."""
        clean = self.first(self.profile.shifted_images)
        ways = [(name, severity) for severity in self.profile.severities for name in CORRUPTIONS]
        x = clean.x.clone()
        for place, (name, severity) in enumerate(ways[: len(clean)]):
            x[place :: len(ways)] = self.corrupt(clean.x[place :: len(ways)], name, severity)
        return clean.but(x=x, name=f"{clean.name}, {SHIFTED}")

    def has(self, split: str) -> bool:
        """Whether the data have the split."""
        return getattr(self.data, split, None) is not None

    def order(self, split: str) -> Tensor | None:
        """The order in which a split is used, so that its first images stand for all; ``None``: the split's own.

        See `holdfast.data.order.fair_order`.
        """
        if split not in self._orders:
            images = self._whole(split)
            made = split == SHIFTED or split.startswith(UNKNOWN)
            self._orders[split] = None if made else fair_order(images, self.run.rng("order", split))
        return self._orders[split]

    def images(self, split: str) -> Images:
        """The images of a split that the profile asks for.

        Args:
            split: ``test``, ``train``, ``val``, ``shifted``, or ``ood/`` and the name of a set of unknown images.

        Raises:
            UserError: the data have no such split.
        """
        if split not in self._images:
            whole = self._whole(split)
            limit = {"test": self.profile.test_images, "train": self.profile.train_images}.get(split)
            order = self.order(split)
            if order is not None:
                whole = whole.select(order[:limit])
            elif limit is not None and limit < len(whole):
                whole = whole.select(slice(0, limit))
            self._images[split] = whole
        return self._images[split]

    @property
    def test(self) -> Images:
        """The test images that the profile asks for."""
        return self.images("test")

    def first(self, count: int | None) -> Images:
        """The first `count` test images; all that the profile uses when ``None`` or more than there are."""
        return self.test if count is None or count >= len(self.test) else self.test.select(slice(0, count))

    def indices(self, split: str) -> NDArray[np.int64]:
        """The positions in the user's data of the images that `images` gives."""
        count, order = len(self.images(split)), self.order("test" if split == SHIFTED else split)
        return np.arange(count) if order is None else order[:count].numpy()

    def _whole(self, split: str) -> Images:
        if split.startswith(UNKNOWN):
            name = split.removeprefix(UNKNOWN)
            if name not in self.unknown:
                raise one_of("set of unknown images", name, self.unknown)
            return self.unknown[name][1]
        if split == SHIFTED:
            return self.shifted
        if split not in ("test", "train", "val"):
            raise one_of("split", split, ["test", "train", "val"])
        images: Images | None = getattr(self.data, split)
        if images is None:
            raise UserError(f"{self.data.name} has no {split} split.")
        return images

    # --- what the model makes of them ---------------------------------------------------------------------------------

    def features(self, split: str) -> Features:
        """Logits and penultimate features of a split, from one pass."""
        images = self.images(split)

        def compute() -> dict[str, Tensor]:
            found = extract(self.model, images, run=self.run)
            return {"logits": found.logits} | ({} if found.penultimate is None else {"penultimate": found.penultimate})

        kept = self.store.tensors("features", self._which(split), compute)
        return Features(logits=kept["logits"], penultimate=kept.get("penultimate"), y=images.y)

    def detector(self, detector: NetworkDetector) -> FittedDetector:
        """A detector that looks on, fitted on the training images.

        Raises:
            UserError: it needs training images and there are none, or it cannot be fitted to this model.
        """
        if not detector.needs_fit:
            return FittedDetector(detector, {})
        train = self.images("train") if self.has("train") else None

        def compute() -> dict[str, Tensor]:
            (fitted,) = fit_detectors([detector], self.model, train, run=self.run).values()
            return dict(fitted.state)

        settings = {"detector": str(detector), **({} if train is None else self._which("train"))}
        return FittedDetector(detector, self.store.tensors("detector", settings, compute, keep=False))

    def observed(self, split: str, fitted: Mapping[str, FittedDetector]) -> Features:
        """`features`, and what those of the detectors that look on keep of the images, from one more pass for all."""
        features = self.features(split)
        looking = {name: one for name, one in fitted.items() if isinstance(one.method, NetworkDetector)}
        if not looking:
            return features

        def compute() -> dict[str, Tensor]:
            return dict(observe(looking, self.model, self.images(split), run=self.run).observed)

        settings: dict[str, Any] = {**self._which(split), "detectors": [str(one.method) for one in looking.values()]}
        if any(one.method.needs_fit for one in looking.values()):
            settings["fitted on"] = self._which("train")
        return dataclasses.replace(features, observed=self.store.tensors("observed", settings, compute, keep=False))

    def _which(self, split: str) -> dict[str, Any]:
        """What says which images those of a split are, beside the identity of the data."""
        images = self.images(split)
        made = split == SHIFTED or split.startswith(UNKNOWN)
        which: dict[str, Any] = {"split": split, "count": len(images)}
        return (
            which
            | ({"images": images.fingerprint()} if made else {})
            | ({"branch": self.branch} if self.branch else {})
        )

    def predictions(self, split: str = "test") -> Predictions:
        """The model's answers on a split."""
        if split not in self._predictions:
            features = self.features(split)
            self._predictions[split] = self._as_predictions(features.logits, features.y)
        return self._predictions[split]

    @functools.cached_property
    def gives_probabilities(self) -> bool:
        """Whether the model's outputs are probabilities where logits are asked for."""
        outputs = self.features("test").logits
        return bool(((outputs >= -1e-5).all() & ((outputs.sum(1) - 1).abs() < 1e-4).all()).item())

    def _as_predictions(self, outputs: Tensor, y: Tensor) -> Predictions:
        values = outputs.double()
        # The logarithms of probabilities are logits that give them back.
        values = values.clamp_min(1e-45).log() if self.gives_probabilities else values
        return Predictions(values.numpy(), y.numpy())

    def respond(self, x: Tensor, *, batch_size: int | None = None) -> Tensor:
        """The model's bare outputs, float32, for any float tensor (N, C, H, W), be it no legal image; not kept."""
        size = batch_size or images_per_pass(self.model, x.shape[1:], self.run)
        with frozen(self.model, device=self.run.torch_device), torch.no_grad():
            parts = [self.model(part.to(self.run.torch_device)).float().cpu() for part in x.split(size)]
        return torch.cat(parts)

    def corrupted(self, name: str, severity: int) -> Predictions:
        """The model's answers on the corrupted first test images."""
        clean = self.first(self.profile.corruption_images)

        def compute() -> dict[str, Tensor]:
            images = clean.but(x=self.corrupt(clean.x, name, severity))
            return {"logits": extract(self.model, images, run=self.run).logits}

        settings = {"corruption": name, "severity": severity, "count": len(clean)}
        kept = self.store.tensors("corrupted", settings, compute)
        return self._as_predictions(kept["logits"], clean.y)

    def corrupt(self, x: Tensor, name: str, severity: int) -> Tensor:
        """Images with a corruption, always the same for the same images."""
        return corrupt(x, name, severity, run=self.run)

    def attacked(
        self, attack: Evasion, which: NDArray[np.int64], *, examples: int = 0, knowing: bool = False
    ) -> Attacked:
        """What an attack does to test images; worked out and kept in parts, so that little is lost by a kill.

        Args:
            attack: what to run.
            which: positions of the images among those of `test`.
            examples: how many adversarial images to keep of each part.
            knowing: the attacker knows the model's guard, and searches on what it offers (`holdfast.evasion.adaptive`).
        """
        size = ASKED_PART if queryables(self.model) else PART
        parts = [
            self._attacked_part(attack, which[start : start + size], examples, knowing)
            for start in range(0, len(which), size)
        ]
        return (
            Attacked(**{name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]})
            if parts
            else (Attacked.nothing(self.test.x))
        )

    def _attacked_part(
        self, attack: Evasion, which: NDArray[np.int64], examples: int, knowing: bool
    ) -> dict[str, Tensor]:
        def compute() -> dict[str, Tensor]:
            rows = self.test.select(which)
            model = informed(self.model) if knowing else self.model
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Unreliable)  # `doubt` says it in the report
                found = attack.run(model, to_float(rows.x), rows.y, run=self.run)
            shown = (found.success & found.correct).nonzero().squeeze(1)[:examples]
            return {
                "success": found.success,
                "queries": found.queries,
                "distance": found.distance,
                "prediction": found.predictions,
                "confidence": found.logits.softmax(1).amax(1),
                "examples": found.x_adv[shown].contiguous(),
                "example_of": torch.from_numpy(which)[shown],
            }

        fields = {f.name: getattr(attack, f.name) for f in dataclasses.fields(attack)}  # type: ignore[arg-type]
        settings: dict[str, Any] = {
            "attack": attack.id,
            "fields": fields,
            "which": which.tolist(),
            "examples": examples,
        }
        settings |= {"knowing": True} if knowing else {}
        return self.store.tensors(f"attack-{attack.id}", settings, compute)

    @functools.cached_property
    def masking(self) -> list[Sign]:
        """Signs that gradients are masked, on some test images at the radius of the threat."""
        images, profile = self.first(self.profile.masking_images), self.profile

        def compute() -> tuple[Any, dict[str, Tensor]]:
            signs = masking_signs(
                self.model,
                to_float(images.x),
                images.y,
                run=self.run,
                eps=self.policy.threat.eps,
                steps=profile.masking_steps,
                queries=profile.masking_queries,
            )
            return [dataclasses.asdict(sign) for sign in signs], {}

        settings = {
            "count": len(images),
            "eps": self.policy.threat.eps,
            "steps": profile.masking_steps,
            "queries": profile.masking_queries,
        }
        signs, _ = self.store.record("masking", settings, compute)
        return [Sign(**sign) for sign in signs]

    @property
    def doubt(self) -> str:
        """Why accuracies under attacks with gradients are not to be believed; empty where nothing speaks against it."""
        failed = [] if self.only_answers else [s.name for s in self.masking if not s.ok and s.severity == "fail"]
        if not failed:
            return ""
        return f"Gradients seem to be masked ({', '.join(failed)}), so the accuracy under attack is not to be trusted."

    def held_out(self) -> tuple[Predictions, Predictions, str]:
        """Predictions to fit something on and others to judge it by, and in words where they come from."""
        test = self.predictions("test")
        if self.has("val"):
            return self.predictions("val"), test, "fitted on the validation split, judged on the test split"
        which = torch.from_numpy(_halves(test.y, self.run.numpy_rng("halves")))
        source = "there is no validation split: fitted on one half of the test images, judged on the other"
        return test.select(which.numpy()), test.select(~which.numpy()), source


def _halves(y: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.bool_]:
    """A random half of each class; the odd ones out alternate between the halves."""
    order = rng.permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    half = np.zeros(len(y), dtype=bool)
    half[order[::2]] = True
    return half
