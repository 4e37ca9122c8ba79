"""The pack on a machine whose GPU is fake: real sizes, no values, no GPU needed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))


def pytest_configure():
    """Boot ComfyUI and load the pack before any test module imports them."""
    if "COMFYUI_PATH" not in os.environ:
        raise pytest.UsageError("These tests need a ComfyUI: run them with `python3 dev.py test fakecuda`.")
    from fake_machine import boot

    boot()


@pytest.fixture
def meter():
    """The meter of a machine with a 24 GiB card, on which the test runs."""
    from fake_machine import fake_machine

    with fake_machine() as meter:
        yield meter


@pytest.fixture
def gpu_only():
    """The same where ComfyUI keeps results between nodes on the GPU."""
    from fake_machine import fake_machine

    with fake_machine(keep_on_gpu=True) as meter:
        yield meter
