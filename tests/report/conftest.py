"""Fixtures around the audit in `sample_audit`."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # test modules are imported one by one, and share the audit

from sample_audit import make_audit


@pytest.fixture(scope="session")
def sample():
    return make_audit()
