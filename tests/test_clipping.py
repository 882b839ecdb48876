"""The clipper equals torch's function to the bit, on every gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from trainer_core.optim.clipping import build_clipper

SHAPES = [(7, 5), (7,), (3, 7), (3,)]


def parameters_with_gradients(seed, scale, dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = (torch.randn(parameter.shape, generator=generator) * scale).to(dtype)
    return parameters


def bits(tensor):
    return tensor.detach().flatten().view(torch.uint8).tolist() if tensor.numel() else []


def assert_clips_as_torch(ours, theirs, max_norm):
    norm = build_clipper(ours, max_norm)()
    expected = nn.utils.clip_grad_norm_(theirs, max_norm)
    assert (norm.dtype, norm.shape, bits(norm.reshape(1))) == (
        expected.dtype,
        torch.Size([]),
        bits(expected.reshape(1)),
    )
    assert [p.grad is None or bits(p.grad) for p in ours] == [p.grad is None or bits(p.grad) for p in theirs]


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    exponent=st.floats(-12, 12),
    max_norm=st.floats(1e-8, 1e8),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
@example(seed=0, exponent=0.0, max_norm=float("inf"), dtype=torch.float32)
@example(seed=0, exponent=0.0, max_norm=0.0, dtype=torch.float32)
def test_clipping_equals_torch_to_the_bit(seed, exponent, max_norm, dtype):
    scale = 10.0**exponent
    ours, theirs = (parameters_with_gradients(seed, scale, dtype) for _ in range(2))
    assert_clips_as_torch(ours, theirs, max_norm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ratio", [0.9, 0.975, 0.98, 0.99, 0.999, 1.0, 1.001, 1.01, 1.1])
def test_clipping_equals_torch_where_the_norm_is_close_to_the_limit(ratio, dtype):
    ours, theirs = (parameters_with_gradients(3, 1.0, dtype) for _ in range(2))
    norm = torch.nn.utils.get_total_norm([p.grad for p in ours]).item()
    assert_clips_as_torch(ours, theirs, norm / ratio)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_gradient_that_is_not_finite_gives_what_torch_gives(value):
    ours, theirs = (parameters_with_gradients(3, 1.0) for _ in range(2))
    for parameters in (ours, theirs):
        parameters[1].grad[2] = value
    assert_clips_as_torch(ours, theirs, 1.0)


def test_parameters_without_a_gradient_are_skipped():
    ours, theirs = (parameters_with_gradients(3, 10.0) for _ in range(2))
    for parameters in (ours, theirs):
        parameters[2].grad = None
    assert_clips_as_torch(ours, theirs, 1.0)


def test_gradients_are_read_at_each_call():
    parameters = parameters_with_gradients(3, 10.0)
    clip = build_clipper(iter(parameters), 1.0)
    first = clip()
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 0.5)
    assert first > 10
    assert clip().item() == pytest.approx(0.5 * sum(p.numel() for p in parameters) ** 0.5)


def test_no_gradient_at_all_has_norm_zero():
    parameters = parameters_with_gradients(3, 1.0)
    for parameter in parameters:
        parameter.grad = None
    assert build_clipper(parameters, 1.0)().item() == 0.0
    assert build_clipper([], 1.0)().item() == 0.0


def test_gradients_of_several_dtypes_are_clipped_by_torch():
    def mixed():
        return parameters_with_gradients(1, 10.0) + parameters_with_gradients(2, 10.0, torch.float64)

    assert_clips_as_torch(mixed(), mixed(), 1.0)


def test_a_subclass_of_tensor_is_clipped_by_torch(monkeypatch):
    class Marked(torch.Tensor):
        pass

    calls = []
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda *arguments: calls.append(arguments))
    marked = torch.zeros(2).as_subclass(Marked)
    build_clipper([marked], 2.0)()
    assert calls == [([marked], 2.0)]


def test_the_grad_mode_is_left_as_it_was():
    clip = build_clipper(parameters_with_gradients(3, 10.0), 1.0)
    clip()
    assert torch.is_grad_enabled()
    with torch.no_grad():
        clip()
        assert not torch.is_grad_enabled()


@pytest.mark.filterwarnings("ignore:Using backward")  # torch's, on create_graph
def test_gradients_with_a_graph_are_clipped_without_one():
    weight = nn.Parameter(torch.ones(3))
    (weight**3).sum().backward(create_graph=True)
    norm = build_clipper([weight], 1.0)()
    assert not norm.requires_grad
    assert torch.linalg.vector_norm(weight.grad).item() == pytest.approx(1.0)


def test_other_devices_are_never_read_back():
    parameters = [nn.Parameter(torch.zeros(3, device="meta"))]
    parameters[0].grad = torch.zeros(3, device="meta")
    assert build_clipper(parameters, 1.0)().device.type == "meta"
