import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

from holdfast.evasion.planes import dual_norm, inner, onto_plane

NORMS = ("linf", "l2", "l1")


def problem(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    point = torch.rand(n, 2, 3, 3, generator=generator)
    point[0, 0].round_()  # pixels at the edge of the box
    normal = torch.randn(n, 2, 3, 3, generator=generator)
    normal[1] *= 1e-25
    normal[2] *= 1e6
    normal[3, 1] = 0
    return point, normal, torch.tensor([0.5, -1e-25, 3e6, -1.0, 2.0, 0.01])


def size(offset, norm):
    return torch.linalg.vector_norm(offset.flatten(1), {"linf": torch.inf, "l2": 2, "l1": 1}[norm], dim=1)


def by_a_solver(point, normal, way, norm):
    """The smallest norm, from linear or quadratic programming in float64."""
    point, normal = point.flatten().double().numpy(), normal.flatten().double().numpy()
    scale = np.abs(normal).max()
    normal, way, n = normal / scale, float(way) / scale, len(point)
    if norm == "linf":
        limits = np.block([[np.eye(n), -np.ones((n, 1))], [-np.eye(n), -np.ones((n, 1))]])
        bounds = [(-p, 1 - p) for p in point] + [(0, None)]
        equal = {"A_eq": [[*normal, 0]], "b_eq": [way]}
        return linprog([0] * n + [1], A_ub=limits, b_ub=np.zeros(2 * n), bounds=bounds, **equal).fun
    if norm == "l1":
        bounds = [(0, 1 - p) for p in point] + [(0, p) for p in point]
        return linprog(np.ones(2 * n), A_eq=[[*normal, *-normal]], b_eq=[way], bounds=bounds).fun
    plane = {"type": "eq", "fun": lambda d: d @ normal - way, "jac": lambda d: normal}
    found = minimize(
        lambda d: d @ d,
        np.zeros(n),
        jac=lambda d: 2 * d,
        bounds=[(-p, 1 - p) for p in point],
        constraints=[plane],
        tol=1e-12,
    )
    return np.sqrt(found.fun)


@pytest.mark.parametrize("norm", NORMS)
def test_the_offset_is_the_smallest_that_a_solver_finds(norm):
    point, normal, way = problem()
    offset = onto_plane(point, normal, way, norm)
    assert torch.allclose(inner(normal, offset) / way, torch.ones(6), atol=2e-6)
    assert (point + offset).min() >= -1e-7
    assert (point + offset).max() <= 1 + 1e-7
    expected = [by_a_solver(*row, norm) for row in zip(point, normal, way, strict=True)]
    assert size(offset, norm).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_where_the_plane_misses_the_box_the_nearest_corner_is_taken(norm):
    point, normal, _ = problem()
    offset = onto_plane(point, normal, torch.full((6,), 1e9), norm)
    corner = torch.where(normal > 0, 1.0, 0.0).where(normal != 0, point)
    assert torch.allclose((point + offset)[[0, 3, 4, 5]], corner[[0, 3, 4, 5]], atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_moves_where_nothing_is_wanted_or_the_normal_is_zero(norm):
    point, normal, _ = problem()
    assert not onto_plane(point, normal, torch.zeros(6), norm).any()
    assert not onto_plane(point, torch.zeros_like(normal), torch.ones(6), norm).any()


@pytest.mark.parametrize("norm", NORMS)
def test_a_row_does_not_depend_on_the_others_or_on_the_layout(norm):
    point, normal, way = problem()
    whole = onto_plane(point, normal, way, norm)
    alone = torch.cat([onto_plane(*(v[i : i + 1] for v in (point, normal, way)), norm) for i in range(6)])
    assert torch.equal(whole, alone)
    last = onto_plane(*(v.contiguous(memory_format=torch.channels_last) for v in (point, normal)), way, norm)
    assert torch.equal(whole, last)


def test_dividing_by_the_dual_norm_gives_the_distance_where_the_box_is_far():
    _, normal, _ = problem()
    point, way = torch.full_like(normal, 0.5), torch.full((6,), 1e-3)
    rows = [0, 3, 4, 5]
    for norm in NORMS:
        offset = onto_plane(point[rows], normal[rows], way[rows], norm)
        assert torch.allclose(size(offset, norm), way[rows] / dual_norm(normal[rows], norm), rtol=1e-4)
