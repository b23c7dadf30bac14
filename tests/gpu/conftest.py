"""GPU tests are deselected unless asked for with `-m gpu`; asked for without a GPU they fail."""

import pytest


@pytest.fixture(autouse=True)
def _device():
    import torch

    if not torch.cuda.is_available():
        pytest.fail("there is no CUDA device here", pytrace=False)
