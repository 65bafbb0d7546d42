"""The faster products of a CPU give the numbers of torch's own."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from kdctool.models import layers
from kdctool.models.layers import Attention, Linear


def linear_and_twin() -> tuple[Linear, torch.nn.Linear]:
    torch.manual_seed(0)
    own, twin = Linear(24, 40), torch.nn.Linear(24, 40)
    twin.load_state_dict(own.state_dict())
    return own, twin


@pytest.mark.parametrize("shape", [(3, 7, 24), (5, 24), (2, 3, 4, 24)])
def test_the_linear_layer_equals_torchs_forward_and_backward(shape: tuple[int, ...]) -> None:
    own, twin = linear_and_twin()
    x = torch.randn(shape)
    grad = torch.randn(*shape[:-1], 40)
    results = []
    for layer in (own, twin):
        given = x.clone().requires_grad_()
        y = layer(given)
        y.backward(grad)
        results.append((y, given.grad, layer.weight.grad, layer.bias.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_strided_input_is_taken_as_it_is() -> None:
    own, twin = linear_and_twin()
    x = torch.randn(6, 9, 24)[:, 2:5]
    torch.testing.assert_close(own(x), twin(x), rtol=1e-5, atol=1e-5)


def test_a_frozen_layer_passes_the_gradient_on() -> None:
    own, twin = linear_and_twin()
    own.requires_grad_(False)
    x = torch.randn(3, 24, requires_grad=True)
    own(x).sum().backward()
    torch.testing.assert_close(x.grad, twin.weight.sum(0).expand(3, 24), rtol=1e-5, atol=1e-5)
    assert own.weight.grad is None


def test_autocast_and_other_types_take_the_usual_way() -> None:
    own, twin = linear_and_twin()
    x = torch.randn(3, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert own(x).dtype == torch.bfloat16
        assert torch.equal(own(x), twin(x))
    assert torch.equal(own.double()(x.double()), twin.double()(x.double()))


def test_an_exported_program_holds_plain_linear_layers() -> None:
    own, _ = linear_and_twin()
    program = torch.export.export(own, (torch.randn(3, 24),))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets == {"aten.linear.default"}


@pytest.mark.skipif(not layers.HAS_ONEDNN, reason="this torch has no oneDNN")
def test_the_fast_way_is_taken() -> None:
    own, _ = linear_and_twin()
    with FlopCounterMode(display=False) as counter:
        own(torch.randn(3, 24))
    assert counter.get_total_flops() == 0  # the counter knows addmm, not oneDNN's product


@pytest.mark.parametrize("tokens", [1, 49, 200])
@pytest.mark.parametrize("scores", [1, 1 << 23])
def test_attention_in_bfloat16_is_that_of_float32(tokens: int, scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`scores` = 1 takes one clip at a time, the other all at once."""
    monkeypatch.setattr(layers, "SCORES", scores)
    torch.manual_seed(0)
    attention = Attention(32, 4)
    x = torch.randn(3, tokens, 32, requires_grad=True)
    exact = attention(x)
    grad = torch.randn_like(exact)
    (want,) = torch.autograd.grad(exact, x, grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = attention(x)
    (got,) = torch.autograd.grad(rough.float(), x, grad)
    assert rough.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: 1 in 256 per rounding, some of them along the way.
    assert F.mse_loss(rough.float(), exact).sqrt() < 0.02 * exact.std()
    assert F.mse_loss(got, want).sqrt() < 0.02 * want.std()


SIGNALLED = """
import ctypes, signal, time
import torch
from kdctool.models.layers import Linear

class Stack(ctypes.Structure):
    _fields_ = [("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

stack = Stack()
ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
assert not stack.flags & 2, "signals are handled on the stack of the products"

torch.set_num_threads(1)
layer, x = Linear(128, 384), torch.randn(1536, 128, requires_grad=True)
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
until = time.monotonic() + 3
while time.monotonic() < until:
    layer(x).square().mean().backward()
signal.setitimer(signal.ITIMER_REAL, 0)
"""


@pytest.mark.skipif(not layers.HAS_ONEDNN, reason="this torch has no oneDNN product")
def test_signals_do_not_corrupt_products() -> None:
    """Without a stack of their own they did: "corrupted size vs. prev_size" on Ctrl-C."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONFAULTHANDLER"}
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
