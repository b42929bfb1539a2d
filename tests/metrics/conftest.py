"""The folder of the Space. Its modules import each other by their names."""

import importlib
import sys
from pathlib import Path

import pytest


SPACE = Path(__file__).resolve().parents[2] / "metrics" / "ece_regime"


@pytest.fixture(scope="session")
def space() -> Path:
    return SPACE


@pytest.fixture(scope="session")
def space_module():
    """Function from the name of a module of the Space to the module."""
    sys.path.insert(0, str(SPACE))
    yield importlib.import_module
    sys.path.remove(str(SPACE))
