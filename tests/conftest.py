"""What every test needs: a cache of its own, so that no test sees kernels that another run left behind, the same random numbers in every
run, and one thread for torch where several processes share the machine."""

import os
import sys
from zlib import crc32

import pytest


@pytest.fixture(autouse=True)
def _same_numbers(request):
    """Numbers that a test draws without a generator of its own are those of its name, in every run."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(crc32(request.node.nodeid.encode()))


@pytest.fixture(autouse=True, scope="session")
def _private_cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("ATTNCC_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def one_thread():
    """For tests of many small tensor operations, in a process of its own too: threads cost them more than they give."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_configure():
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)
