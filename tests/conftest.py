import os
import signal

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what runs in the background ignore it


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="repeat the fault tests at many more random points")


def pytest_configure(config):
    config.addinivalue_line("markers", "only_slow: left out without --slow")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        slow = [item for item in items if item.get_closest_marker("only_slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def slow(request):
    """Whether to try many more random points than there is time for in every run."""
    return request.config.getoption("--slow")
