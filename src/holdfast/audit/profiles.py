"""How much is measured: every sample count and budget of the audit, in one place.

`quick` is for a first look and for demonstrations, `standard` for decisions, `full` for publication. A count of
``None`` means all there are.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from holdfast.errors import UserError, one_of

__all__ = ["PROFILES", "Profile", "profile_of"]


_MAY_BE_LEFT_OUT = {"apgd_steps", "apgd_targets", "fab_steps", "cw_steps", "shifted_images"}
_MAY_BE_LEFT_OUT |= {"l2_images", "transfer_images", "decision_images", "universal_images"}

# By cost: those that a first look takes; those that read features too; and those that take longest, by a large
# eigenproblem, or by looking on during a pass of their own, some of them with gradients.
_QUICK_DETECTORS = ("msp", "max-logit", "energy", "knn", "mahalanobis", "vim")
_READING = (
    *("entropy", "gen", "klm", "openmax"),
    *("react", "dice", "ash", "scale", "vra", "bats", "she", "gradnorm", "nnguide", "fdbd"),
    *("relative-mahalanobis", "pca-residual"),
)
_SLOW = ("kpca-ood", "odin", "gram", "rankfeat")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Sample counts and budgets.

    Args:
        name: for the report.
        test_images: of accuracy, calibration, detection, membership, fairness.
        train_images: of the generalisation gap, membership, and detectors that learn.
        sanity_images: of the checks of the evidence.
        corruption_images: for each of the corruptions at each of `severities`.
        severities: 1 to 5.
        ood_images: of each set of unknown inputs.
        detectors: of unknown inputs, specs of methods of that kind.
        shifted_images: test images that are corrupted and must still count as known to them; 0 leaves it out.
        attack_images, pgd_steps, pgd_restarts: of the gradient attacks.
        apgd_steps, apgd_targets: of Auto-PGD on what PGD leaves, untargeted and towards so many classes; 0 takes PGD
            on the margin instead.
        fab_steps: of FAB, towards as many classes, on what Auto-PGD leaves; 0 leaves it out.
        square_images, square_queries: of the black-box attack.
        curve_images, curve_steps: of robust accuracy over the radius, and of the distance to the nearest error.
        cw_steps: of C&W in search of nearer errors than DeepFool's; 0 leaves it out.
        l2_images: attacked in the Euclidean norm, with `apgd_steps`, `apgd_targets` and `square_queries`; 0 leaves it
            out, and so for the other attacks below.
        universal_images: that one pattern for all images is fitted to.
        transfer_images: attacked on other models.
        decision_images, decision_queries: of the attack that sees labels only.
        guard_images: attacked with and without knowledge of the guard, where there is one.
        masking_images, masking_steps, masking_queries: of the tests for masked gradients.
        fault_images, fault_trials: of the weight faults, for each rate.
        fault_bits: single flips tried in search of the worst.
        latency_repeats: forward passes timed.
        resamples: of each bootstrap.
        gallery: groups of pictures in a gallery.
    """

    name: str
    test_images: int | None
    train_images: int | None
    sanity_images: int
    corruption_images: int | None
    severities: tuple[int, ...]
    ood_images: int | None
    detectors: tuple[str, ...]
    shifted_images: int | None
    attack_images: int | None
    pgd_steps: int
    pgd_restarts: int
    apgd_steps: int
    apgd_targets: int
    fab_steps: int
    square_images: int | None
    square_queries: int
    curve_images: int | None
    curve_steps: int
    cw_steps: int
    l2_images: int | None
    universal_images: int
    transfer_images: int | None
    decision_images: int
    decision_queries: int
    guard_images: int
    masking_images: int
    masking_steps: int
    masking_queries: int
    fault_images: int | None
    fault_trials: int
    fault_bits: int
    latency_repeats: int
    resamples: int
    gallery: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in _MAY_BE_LEFT_OUT else 1
            if isinstance(value, int) and value < least:
                raise UserError(f"profile {self.name}: {field.name} must be at least {least}, got {value}.")
        if not self.detectors:
            raise UserError(f"profile {self.name}: detectors must be named, got none.")
        if not self.severities or not set(self.severities) <= {1, 2, 3, 4, 5}:
            raise UserError(f"profile {self.name}: severities must be among 1 to 5, got {self.severities}.")

    def to_json(self) -> dict[str, Any]:
        """The profile as plain values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            name="quick",
            test_images=1000,
            train_images=2000,
            sanity_images=64,
            corruption_images=200,
            severities=(1, 3, 5),
            ood_images=500,
            detectors=_QUICK_DETECTORS,
            shifted_images=0,
            attack_images=200,
            pgd_steps=20,
            pgd_restarts=2,
            apgd_steps=0,
            apgd_targets=0,
            fab_steps=0,
            square_images=100,
            square_queries=300,
            curve_images=100,
            curve_steps=10,
            cw_steps=0,
            l2_images=0,
            universal_images=500,
            transfer_images=200,
            decision_images=10,
            decision_queries=300,
            guard_images=100,
            masking_images=64,
            masking_steps=10,
            masking_queries=200,
            fault_images=200,
            fault_trials=20,
            fault_bits=50,
            latency_repeats=20,
            resamples=1000,
            gallery=6,
        ),
        Profile(
            name="standard",
            test_images=None,
            train_images=10_000,
            sanity_images=256,
            corruption_images=1000,
            severities=(1, 2, 3, 4, 5),
            ood_images=2000,
            detectors=(*_QUICK_DETECTORS, *_READING),
            shifted_images=1000,
            attack_images=1000,
            pgd_steps=20,
            pgd_restarts=2,
            apgd_steps=50,
            apgd_targets=3,
            fab_steps=0,
            square_images=300,
            square_queries=1000,
            curve_images=250,
            curve_steps=20,
            cw_steps=0,
            l2_images=250,
            universal_images=2000,
            transfer_images=500,
            decision_images=32,
            decision_queries=1000,
            guard_images=250,
            masking_images=100,
            masking_steps=20,
            masking_queries=500,
            fault_images=300,
            fault_trials=20,
            fault_bits=100,
            latency_repeats=100,
            resamples=1000,
            gallery=8,
        ),
        Profile(
            name="full",
            test_images=None,
            train_images=None,
            sanity_images=1000,
            corruption_images=None,
            severities=(1, 2, 3, 4, 5),
            ood_images=None,
            detectors=(*_QUICK_DETECTORS, *_READING, *_SLOW),
            shifted_images=5000,
            attack_images=None,
            pgd_steps=50,
            pgd_restarts=3,
            apgd_steps=100,
            apgd_targets=9,
            fab_steps=100,
            square_images=None,
            square_queries=5000,
            curve_images=None,
            curve_steps=50,
            cw_steps=200,
            l2_images=None,
            universal_images=10_000,
            transfer_images=None,
            decision_images=500,
            decision_queries=5000,
            guard_images=1000,
            masking_images=1000,
            masking_steps=20,
            masking_queries=1000,
            fault_images=None,
            fault_trials=20,
            fault_bits=500,
            latency_repeats=300,
            resamples=2000,
            gallery=12,
        ),
    )
}


def profile_of(profile: str | Profile) -> Profile:
    """The profile of a name; a profile passes through.

    Raises:
        UserError: there is no profile of that name.
    """
    if isinstance(profile, Profile):
        return profile
    if profile not in PROFILES:
        raise one_of("profile", profile, PROFILES)
    return PROFILES[profile]
