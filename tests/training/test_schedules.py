import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast import catalog
from holdfast.training import Constant, Cosine, MultiStep, OneCycle

SCHEDULES = [
    *(Constant(), Constant(warmup=0.2), Cosine(), Cosine(warmup=0.1, final=0.1)),
    *(OneCycle(), OneCycle(warmup=0), OneCycle(warmup=1), OneCycle(shape="linear"), MultiStep()),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@given(total=st.integers(1, 300))
def test_factors_lie_between_nothing_and_the_peak(schedule, total):
    factors = [schedule(step, total) for step in range(total)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[0] > 0


def test_one_cycle_rises_to_the_peak_and_falls_to_nothing():
    cycle = OneCycle(warmup=0.3, start=0.1)
    assert cycle.factor(0) == pytest.approx(0.1)
    assert cycle.factor(0.15) == pytest.approx(0.55)
    assert cycle.factor(0.3) == pytest.approx(1)
    assert cycle.factor(0.65) == pytest.approx(0.5)
    assert cycle.factor(1) == pytest.approx(0)
    assert OneCycle(warmup=0, shape="linear").factor(0.25) == pytest.approx(0.75)


def test_cosine_passes_the_middle_at_half():
    assert Cosine().factor(0.5) == pytest.approx(0.5)
    assert Cosine(final=0.2).factor(1) == pytest.approx(0.2)
    assert Cosine(warmup=0.5).factor(0.25) == pytest.approx(0.5)


def test_steps_drop_at_their_moments():
    steps = MultiStep(at=(0.5, 0.75), gamma=0.1)
    assert [steps.factor(p) for p in (0.49, 0.5, 0.74, 0.75)] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_they_are_built_from_specs():
    assert catalog.build("one-cycle(warmup=0.2, shape=linear)") == OneCycle(warmup=0.2, shape="linear")
    assert catalog.build("multi-step(at=[0.3, 0.6])") == MultiStep(at=(0.3, 0.6))
    assert all(catalog.build(str(schedule)) == schedule for schedule in SCHEDULES)
