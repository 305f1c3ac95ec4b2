"""Fixtures around the task in `patterns_task`."""

import sys
from pathlib import Path

import pytest

from holdfast import Run
from holdfast.data import Data

sys.path.insert(0, str(Path(__file__).parent))  # test modules are imported one by one, and share the task

from patterns_task import Linear, split


@pytest.fixture
def model():
    return Linear().eval()


@pytest.fixture(scope="session")
def data():
    return Data(
        name="patterns",
        train=split("train", 240, seed=1),
        val=split("val", 160, seed=2),
        test=split("test", 160, seed=3),
    )


@pytest.fixture
def run():
    return Run(device="cpu", batch_size=64)
