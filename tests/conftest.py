"""What every test shares: caches of their own, and calm property tests."""

import os

# The tests are the same on every machine: those that need a GPU are asked for by `make test-cuda`.
if not os.environ.get("HOLDFAST_TEST_CUDA"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import signal

import pytest
import torch
from hypothesis import HealthCheck, settings

# Machines that run the tests are small and shared: no deadlines, and the same examples every time.
settings.register_profile(
    "calm", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "calm"))

# A shell that starts the tests in the background has them ignore Ctrl-C, which some of them send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tiny nets: threads only get in each other's way.
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items):
    """Tests that share what their module prepares share a worker (`--dist loadgroup`); some need a GPU."""
    for item in items:
        prepared = [d for ds in item._fixtureinfo.name2fixturedefs.values() for d in ds if d.scope == "module"]
        if prepared and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))
    if not torch.cuda.is_available():
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a GPU (make test-cuda)"))


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Tests never read or write the user's cache; those of several workers share one, and what was trained for it."""
    previous = os.environ.get("HOLDFAST_CACHE")
    shared = tmp_path_factory.getbasetemp().parent / "cache" if "PYTEST_XDIST_WORKER" in os.environ else None
    os.environ["HOLDFAST_CACHE"] = str(shared or tmp_path_factory.mktemp("cache"))
    yield
    if previous is None:
        del os.environ["HOLDFAST_CACHE"]
    else:
        os.environ["HOLDFAST_CACHE"] = previous
