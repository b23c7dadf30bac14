"""Memory for results: as torch's own functions would give it."""

import pytest
import torch

from attncc.runtime import allocate
from attncc.runtime.allocate import allocator, contiguous

CPU, LAYOUT = torch.device("cpu"), contiguous((2, 3, 4), torch.bfloat16)


@pytest.mark.parametrize("shape", [(2, 3, 4), (1,), (), (2, 0, 3), (0, 4)])
def test_layouts_are_those_of_contiguous_tensors(shape):
    same = torch.empty(shape)
    assert contiguous(torch.Size(shape), torch.float32) == (tuple(shape), same.stride(), torch.float32)
    assert type(contiguous(torch.Size(shape), torch.float32)[0]) is tuple


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "dispatched"])
def test_a_new_tensor_is_an_ordinary_one(direct, monkeypatch):
    if not direct:
        monkeypatch.setattr(allocate, "_direct", lambda kind: None)
    empty = allocator(CPU)
    x, y = empty(*LAYOUT), empty(*LAYOUT)
    assert (x.shape, x.dtype, x.device, x.stride()) == ((2, 3, 4), torch.bfloat16, CPU, (12, 4, 1))
    assert x.untyped_storage().nbytes() == 48 and x.untyped_storage().data_ptr() != y.untyped_storage().data_ptr()
    assert x.is_leaf and not x.requires_grad and x.data_ptr() % 16 == 0
    x.fill_(1).requires_grad_().float().sum().backward()
    assert (x.grad == 1).all()
    y.resize_(5, 7).zero_()
    with torch.inference_mode():
        assert empty(*LAYOUT).is_inference()


def test_this_torch_allocates_without_the_dispatcher():
    assert allocate._direct("cpu") is not None and allocate._direct("cuda") is not None
    assert allocate._direct("meta") is None


@pytest.mark.parametrize(("devices", "here", "direct"), [(1, 0, True), (2, 0, True), (2, 1, False)])
def test_another_device_than_the_current_one(devices, here, direct, monkeypatch):
    """torch's function knows the current device only."""
    taken = []
    monkeypatch.setattr(allocate, "_direct", lambda kind: lambda *layout: taken.append(("direct", *layout)))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: here, raising=False)
    monkeypatch.setattr(
        torch, "empty_strided", lambda *a, dtype, device: taken.append(("dispatched", *a, dtype)) or device
    )
    device = torch.device("cuda:0")
    found = allocator(device)(*LAYOUT)
    assert taken == [("direct" if direct else "dispatched", *LAYOUT)] and (direct or found == device)


def test_memory_that_is_not_wholly_written_is_filled_where_that_is_asked_for():
    """torch.utils.deterministic.fill_uninitialized_memory: rows that no packed sequence covers stay as they were allocated."""
    empty = allocator(CPU, partly=True)
    torch._C._set_deterministic_algorithms(True)  # what torch.use_deterministic_algorithms does, without its imports
    try:
        assert empty(*LAYOUT).isnan().all()
    finally:
        torch._C._set_deterministic_algorithms(False)
