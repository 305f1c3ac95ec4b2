"""A task that needs no training: a few patterns, noise, and the linear model whose weights are the patterns."""

import dataclasses

import torch
from torch import nn

from holdfast.audit.profiles import PROFILES
from holdfast.data import Images

CLASSES = 4

TINY = dataclasses.replace(
    PROFILES["quick"],
    name="tiny",
    test_images=None,
    train_images=None,
    sanity_images=16,
    corruption_images=24,
    severities=(1, 5),
    ood_images=40,
    detectors=("msp", "max-logit", "energy", "knn"),
    shifted_images=24,
    attack_images=24,
    pgd_steps=3,
    pgd_restarts=2,
    apgd_steps=4,
    apgd_targets=2,
    fab_steps=4,
    square_images=12,
    square_queries=15,
    curve_images=16,
    curve_steps=2,
    cw_steps=3,
    l2_images=12,
    universal_images=40,
    transfer_images=12,
    decision_images=6,
    decision_queries=60,
    guard_images=12,
    masking_images=8,
    masking_steps=2,
    masking_queries=10,
    fault_images=24,
    fault_trials=3,
    fault_bits=4,
    latency_repeats=3,
    resamples=60,
    gallery=2,
)


def patterns(classes=CLASSES, channels=1, size=8):
    x = torch.rand(classes, channels, size, size, generator=torch.Generator().manual_seed(5))
    return (x > 0.5).float()


def split(name, count, *, noise=0.5, classes=CLASSES, channels=1, size=8, seed=0, columns=None):
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (count,), generator=rng)
    x = patterns(classes, channels, size)[y] * 0.25 + 0.375
    x = (x + noise * torch.randn(x.shape, generator=rng)).clamp(0, 1)
    return Images(x=x, y=y, classes=tuple(f"class {k}" for k in range(classes)), name=name, columns=columns or {})


class Linear(nn.Module):
    """Logits are scaled correlations with the patterns, about calibrated at scale 1."""

    def __init__(self, scale=0.9, classes=CLASSES, channels=1, size=8):
        super().__init__()
        weights = (patterns(classes, channels, size) - 0.5).flatten(1)
        self.fc = nn.Linear(weights.shape[1], classes)
        self.fc.weight.data, self.fc.bias.data = scale * 2 * weights, torch.zeros(classes)

    def forward(self, x):
        return self.fc((x - 0.5).flatten(1))
