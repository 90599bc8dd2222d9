"""Backends, seeds and poisoned memory, shared by every suite."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from bll_kernels import available, use_backend
from bll_kernels.backends.selection import DEVICES

settings.register_profile(
    "ci",
    max_examples=1000,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile("long", settings.get_profile("ci"), max_examples=10_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Small tensors gain nothing from threads, and beside other work they lose a great deal; tests that
# are about threads set their own number.
torch.set_num_threads(1)

BACKENDS = available()
REQUIRED = {name for name in os.environ.get("BLL_REQUIRE", "").split(",") if name}
#: Backends the suites run on: what serves CPU tensors here, and what must.
TESTED = [
    name
    for name, reason in BACKENDS.items()
    if "cpu" in DEVICES[name] and (reason is None or name in REQUIRED)
]


def pytest_report_header() -> list[str]:
    lines = [f"bll_kernels backends tested: {', '.join(TESTED)}"]
    lines += [f"not here: {name}: {why}" for name, why in BACKENDS.items() if name not in TESTED]
    return lines


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Whole suites behind one test: begun last, they would leave all other processes idle.
    items.sort(key=lambda item: "triton" not in item.path.parts)
    reason = BACKENDS["native"]
    if reason is None or "native" in REQUIRED:
        return
    for item in items:
        if item.get_closest_marker("native"):
            item.add_marker(pytest.mark.skip(reason=f"native: {reason}"))


@pytest.fixture(params=TESTED)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per backend; one that is required and missing fails."""
    name = request.param
    if BACKENDS[name] is not None:
        pytest.fail(f"BLL_REQUIRE asks for {name}: {BACKENDS[name]}")
    with use_backend(name):
        yield name


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory from torch.empty holds NaN (or the largest integer), so nothing unset can pass."""
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of intra-op threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
