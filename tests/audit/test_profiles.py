import dataclasses

import pytest

from holdfast import UserError, catalog
from holdfast.audit import PROFILES
from holdfast.audit.profiles import profile_of
from holdfast.methods import Detector


def test_each_profile_measures_at_least_as_much_as_the_one_before():
    quick, standard, full = (PROFILES[name].to_json() for name in ("quick", "standard", "full"))
    for name in quick:
        if name not in ("name", "severities", "detectors"):
            sizes = [float("inf") if p[name] is None else p[name] for p in (quick, standard, full)]
            assert sizes == sorted(sizes), name
    assert set(quick["detectors"]) < set(standard["detectors"]) < set(full["detectors"])
    assert standard["severities"] == full["severities"] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("change", [{"pgd_steps": 0}, {"severities": ()}, {"severities": (0, 6)}, {"detectors": ()}])
def test_counts_that_make_no_sense_are_refused(change):
    with pytest.raises(UserError, match=f"profile quick: {next(iter(change))} must be"):
        dataclasses.replace(PROFILES["quick"], **change)


@pytest.mark.parametrize("name", ["quick", "standard", "full"])
def test_every_detector_of_a_profile_is_in_the_catalogue(name):
    for spec in PROFILES[name].detectors:
        assert str(catalog.build(spec, kind=Detector)) == spec


def test_a_profile_of_ones_own_passes_through():
    own = dataclasses.replace(PROFILES["quick"], name="own", test_images=3)
    assert profile_of(own) is own
