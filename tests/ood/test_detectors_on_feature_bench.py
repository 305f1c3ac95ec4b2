"""The detectors on synthetic features whose right answers are known.

Features of six classes lie on six random axes of a 64-dimensional space, with lengths that vary log-normally. Three
kinds of anomaly: "off-span" leaves the axes' span, "between" mixes two classes, "small" is an ID feature divided by 4.
A value of 0.5 is right where a detector is blind to a kind of anomaly.
"""

import pytest
import torch

from holdfast import stats
from holdfast.models import Features
from holdfast.ood import fit_on_features

D, C = 64, 6


class Bench:
    def __init__(self, seed: int):
        self.rng = torch.Generator().manual_seed(seed)
        self.axes = torch.linalg.qr(self.normal(D, D).double())[0].float()
        self.head = torch.nn.Linear(D, C, bias=False)
        self.head.weight.data.copy_(self.axes[:C])
        self.train, self.test = self.inside(3000), self.inside(1000)
        y = torch.randint(C, (1000,), generator=self.rng)
        other = (y + torch.randint(1, C, (1000,), generator=self.rng)) % C
        outside = torch.randint(C, D, (1000,), generator=self.rng)
        self.out = {
            "off-span": self.placed(0.8 * self.axes[y] + 0.6 * self.axes[outside]),
            "between": self.placed(0.8 * self.axes[y] + 0.6 * self.axes[other]),
            "small": self.features(self.inside(1000).penultimate / 4),
        }

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.rng)

    def inside(self, n):
        y = torch.randint(C, (n,), generator=self.rng)
        return self.placed(self.axes[y], y)

    def placed(self, directions, y=None):
        noisy = directions + 0.08 * self.normal(*directions.shape)
        return self.features(6 * torch.exp(0.25 * self.normal(len(directions), 1)) * noisy, y)

    def features(self, h, y=None):
        y = torch.zeros(len(h), dtype=torch.int64) if y is None else y
        return Features(logits=h @ self.axes[:C].T, penultimate=h, y=y)


@pytest.fixture(scope="module", params=[0, 1, 2])
def bench(request):
    return Bench(request.param)


@pytest.mark.parametrize(
    ("detector", "expected"),
    [
        ("msp", {"off-span": 0.72, "between": 0.98, "small": 1.0}),
        ("energy", {"off-span": 0.72, "between": 0.67, "small": 1.0}),
        ("max-logit", {"small": 1.0}),
        ("gradnorm", {"off-span": 0.53, "between": 0.69, "small": 1.0}),
        ("knn(k=50)", {"off-span": 0.998, "between": 0.999, "small": 0.50}),
        ("mahalanobis", {"off-span": 0.84, "between": 0.70, "small": 0.21}),
        ("relative-mahalanobis", {"off-span": 0.69, "between": 0.99, "small": 0.99}),
        ("vim(dim=32)", {"off-span": 0.99, "between": 0.74, "small": 0.16}),
        ("she", {"off-span": 0.72, "between": 0.71, "small": 1.0}),
        ("pca-residual", {"off-span": 0.80, "between": 0.50, "small": 0.0}),
        ("kpca-ood(kernel=linear, explained=0.9)", {"off-span": 0.80, "between": 0.50, "small": 0.0}),
        ("kpca-ood(kernel=cosine, explained=0.85)", {"off-span": 0.98, "between": 0.62, "small": 0.50}),
        ("kpca-ood(size=1024)", {"off-span": 0.997, "between": 0.99, "small": 0.50}),
        (
            "kpca-cogau(gamma=2, size=512, explained=0.8, residual=rkhs)",
            {"off-span": 0.997, "between": 0.99, "small": 0.50},
        ),
        (
            "kpca-cogau(gamma=0.5, size=512, explained=0.8, residual=rkhs)",
            {"off-span": 0.996, "between": 0.966, "small": 0.50},
        ),
        (
            "kpca-cogau(gamma=0.5, size=512, explained=0.8, residual=official)",
            {"off-span": 0.946, "between": 0.957, "small": 0.50},
        ),
    ],
)
def test_separation_is_what_the_geometry_demands(bench, detector, expected):
    (fitted,) = fit_on_features([detector], bench.train, bench.head).values()
    inside = fitted.score(bench.test)
    for kind, value in expected.items():
        spread = 0.08 if detector == "mahalanobis" else 0.05  # over seeds
        assert stats.auroc(inside, fitted.score(bench.out[kind])) == pytest.approx(value, abs=spread)
