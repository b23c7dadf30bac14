"""What every test needs: a cache of its own, so that no test sees kernels that another run left behind, and one thread for
torch where several processes share the machine."""

import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def _private_cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("ATTNCC_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


def pytest_configure():
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)
