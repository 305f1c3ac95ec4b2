"""Proofs of AutoAttack, of FAB and of Square in l_2."""

from __future__ import annotations

import functools

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from holdfast.evasion import FAB, PGD, AutoAttack, Square, StagedOutcome
from holdfast.evasion.balls import Norm
from holdfast.models import frozen
from holdfast.proofs.lab import Lab, correctly_classified
from holdfast.proofs.proof import Measured, proof

__all__: list[str] = []


def _attack(lab: Lab) -> AutoAttack:
    """AutoAttack at the radius of the scale; Square has 1,000 queries, which is what costs most."""
    return AutoAttack(eps=_radius(lab), queries=lab.pick(smoke=200, cpu=1000), steps=lab.pick(smoke=30, cpu=100))


def _radius(lab: Lab) -> float:
    return float(lab.pick(smoke=0.15, cpu=8 / 255))


@functools.lru_cache(maxsize=1)
def _on_robust(lab: Lab, count: int) -> tuple[nn.Module, Tensor, Tensor, StagedOutcome]:
    """The bundled robust model, images it classifies rightly, and how AutoAttack does on them."""
    model = lab.zoo(robust=True)
    x, y = correctly_classified(model, lab.data.test, lab.run, count)
    return model, x, y, _attack(lab).run(model, x, y, run=lab.run)


def _stages(outcome: StagedOutcome) -> dict[str, float]:
    return {stage.name: stage.robust_accuracy for stage in outcome.stages}


@proof(
    method="autoattack",
    claim="The robust accuracy falls from stage to stage, and is no higher than under any of the members alone.",
    source="Croce and Hein 2020, section 6",
    metric="robust accuracy - lowest of the members'",
    better="lower",
    threshold={"smoke": 0.0, "cpu": 0.0},
)
def autoattack_is_the_worst_case_of_its_members(lab: Lab) -> Measured:
    """Survival of a robust model, under AutoAttack and under each member on all images; infinite if a stage rises."""
    model, x, y, outcome = _on_robust(lab, lab.pick(smoke=50, cpu=80))
    accuracies = [outcome.clean_accuracy, *_stages(outcome).values()]
    falling = accuracies == sorted(accuracies, reverse=True)
    members = _attack(lab).members(lab.data.num_classes)
    alone = {name: m.run(model, x, y, run=lab.run).robust_accuracy for name, m in members.items()}
    lowest = min(alone.values())
    return Measured(
        value=outcome.robust_accuracy - lowest if falling else float("inf"),
        baseline=lowest,
        baseline_name="survival under the strongest member",
        n=len(x),
        details={"stages": _stages(outcome), "alone": alone, "seconds": list(outcome.seconds)},
    )


@proof(
    method="autoattack",
    claim="On a robust model AutoAttack finds adversarial images that PGD with 20 steps does not.",
    source="Croce and Hein 2020, tables 2 and 3",
    metric="survival, PGD-20 - AutoAttack",
    better="higher",
    threshold={"smoke": 0.0, "cpu": 0.01},
)
def autoattack_finds_more_than_pgd(lab: Lab) -> Measured:
    """Survival of rightly classified images of an adversarially trained model."""
    model, x, y, outcome = _on_robust(lab, 80)
    pgd = PGD(eps=_radius(lab), steps=20).run(model, x, y, run=lab.run)
    return Measured.difference(
        ~pgd.success,
        ~outcome.success,
        "survival under PGD-20",
        baseline="first",
        details={"stages": _stages(outcome)},
    )


@proof(
    method="autoattack",
    claim="An undefended network has no robustness at all.",
    source="Croce and Hein 2020",
    metric="survival",
    better="lower",
    threshold={"smoke": 0.01, "cpu": 0.01},
)
def autoattack_breaks_an_undefended_network(lab: Lab) -> Measured:
    """Survival of rightly classified images."""
    model = lab.zoo()
    x, y = correctly_classified(model, lab.data.test, lab.run, lab.pick(smoke=100, cpu=256))
    outcome = _attack(lab).run(model, x, y, run=lab.run)
    return Measured.share(~outcome.success, details={"stages": _stages(outcome)})


@proof(
    method="fab",
    claim="On a linear model FAB finds the smallest perturbation there is, in either norm.",
    source="Croce and Hein 2020 (FAB), section 2: the projections are exact",
    metric="largest distance / exact distance",
    better="lower",
    threshold={"smoke": 1.01, "cpu": 1.01},
)
def fab_is_exact_on_a_linear_model(lab: Lab) -> Measured:
    """A linear classifier fitted to the data; exact distances to its planes within the box by bisection in float64."""
    model = _least_squares(lab)
    x, y = correctly_classified(model, lab.data.test, lab.run, lab.pick(smoke=60, cpu=256))
    ratios = {}
    norms: tuple[Norm, ...] = ("linf", "l2")
    for norm in norms:
        exact = _exact(model, x, y, norm)
        for name, targets in (("fab", 0), ("fab-t", lab.data.num_classes - 1)):
            found = FAB(norm=norm, targets=targets, steps=20).run(model, x, y, run=lab.run)
            ratio = torch.where(found.success, found.distance.double() / exact, torch.inf)
            ratios[f"{name} {norm}"] = (float(ratio.max()), float(ratio.min()))
    least = min(low for _, low in ratios.values())
    return Measured(
        # A distance below the exact one would be a mistake somewhere.
        value=max(high for high, _ in ratios.values()) if least > 1 - 1e-4 else float("inf"),
        n=len(x),
        details={name: high for name, (high, _) in ratios.items()} | {"least": least},
    )


def _least_squares(lab: Lab) -> nn.Module:
    """A linear classifier by ridge regression on the one-hot labels of the first training images."""
    assert lab.data.train is not None
    x, y = next(lab.data.train.select(slice(0, 5000)).batches(5000))
    points = x.flatten(1).double() - 0.5
    gram = points.T @ points
    gram.diagonal().add_(0.01 * gram.diagonal().mean())
    weight = torch.linalg.solve(gram, points.T @ nn.functional.one_hot(y, lab.data.num_classes).double())
    linear = nn.Linear(*weight.shape)
    with torch.no_grad():
        linear.weight.copy_(weight.T)
        linear.bias.copy_(-0.5 * weight.sum(0))
    return nn.Sequential(nn.Flatten(), linear)


def _exact(model: nn.Module, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"], norm: Norm) -> Float[Tensor, " n"]:
    """Each image's distance to the nearest boundary of a linear model within the box."""
    weight, bias = (p.detach().double() for p in model.parameters())
    points = x.flatten(1).double()
    logits = points @ weight.T + bias
    nearest = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for other in range(len(weight)):
        normal = weight[other] - weight[y]
        gap = logits.gather(1, y[:, None]).squeeze(1) - logits[:, other]
        speed = normal.sign() if norm == "linf" else normal / normal.abs().amax(1, keepdim=True).clamp_min(1e-300)

        def offset(scale: Tensor, speed: Tensor = speed) -> Tensor:
            return (points + scale[:, None] * speed).clamp(0, 1) - points

        low = torch.zeros_like(gap)
        high = torch.full_like(gap, 1e6)
        for _ in range(100):
            middle = (low + high) / 2
            short = (normal * offset(middle)).sum(1) < gap
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        found = offset(high)
        size = found.abs().amax(1) if norm == "linf" else found.norm(dim=1)
        reaches = ((normal * found).sum(1) >= gap) & (y != other)
        nearest = torch.where(reaches, torch.minimum(nearest, size), nearest)
    return nearest


@proof(
    method="square",
    claim="In l_2, too, Square with a few hundred queries breaks an undefended network that noise hardly touches.",
    source="Andriushchenko et al. 2020, section 5, l_2",
    metric="survival, noise - square",
    better="higher",
    threshold={"smoke": 0.25, "cpu": 0.25},
)
def square_beats_random_noise_in_l2(lab: Lab) -> Measured:
    """Survival under the best of 500 points on the sphere minus survival under Square with 500 queries."""
    count, queries = lab.pick(smoke=60, cpu=256), 500
    eps = lab.pick(smoke=1.5, cpu=0.5)
    model = lab.zoo()
    x, y = correctly_classified(model, lab.data.test, lab.run, count)
    square = Square(eps=eps, norm="l2", queries=queries, p_init=0.1, rescale=True).run(model, x, y, run=lab.run)
    survived = ~square.success
    standing = torch.ones(len(x), dtype=torch.bool)
    generator = lab.run.rng("noise")
    with frozen(model) as judge, torch.no_grad():
        for _ in range(queries):
            left = standing.nonzero().flatten()
            noise = torch.randn(len(left), *x.shape[1:], generator=generator)
            noise *= eps / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            standing[left] = judge((x[left] + noise).clamp(0, 1)).argmax(1) == y[left]
    return Measured.difference(
        standing,
        survived,
        "survival under noise",
        baseline="first",
        details={"survival_under_square": float(survived.float().mean())},
    )
