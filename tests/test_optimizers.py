"""The optimizers: Muon against the singular value decomposition, the cycle of the rate, and exact continuation."""

from __future__ import annotations

import math
from functools import partial

import pytest
import timm.optim
import torch
from torch import nn

from distilhash.checkpoint import load_tensors, save_tensors
from distilhash.config import HashConfig
from distilhash.errors import DistilhashError
from distilhash.training import optim
from distilhash.training.optim import Muon, Optimizers, one_cycle, orthonormalize
from tiny import TinyStudent

SHAPES = [(6, 6), (5, 40), (40, 5), (16, 144), (1, 9)]


def well_conditioned(count, rows, columns, seed=0):
    """Random matrices with singular values between 0.3 and 3, and their singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    u, _, v = torch.linalg.svd(torch.randn(count, rows, columns, generator=generator), full_matrices=False)
    s = torch.empty(count, min(rows, columns)).uniform_(0.3, 3, generator=generator)
    return u @ torch.diag_embed(s) @ v, u, v


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_orthonormalize_keeps_the_singular_vectors_and_levels_the_values(shape):
    matrices, u, v = well_conditioned(3, *shape)
    levelled = u.mT @ orthonormalize(matrices) @ v.mT  # diagonal in the basis of the singular vectors
    values = levelled.diagonal(dim1=1, dim2=2)
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert (levelled - torch.diag_embed(values)).abs().max() < 1e-3


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_orthonormalize_is_the_plain_iteration_on_the_wide_matrix(shape):
    for matrix in well_conditioned(3, *shape, seed=1)[0]:
        x = matrix.double() if shape[0] <= shape[1] else matrix.double().T
        x = x / x.norm()
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        plain = x if shape[0] <= shape[1] else x.T
        assert (orthonormalize(matrix[None])[0] - plain).abs().max() < 1e-3


def test_orthonormalize_takes_no_notice_of_scale_or_of_neighbours():
    matrices = well_conditioned(4, 8, 24)[0]
    together = orthonormalize(matrices)
    assert (orthonormalize(1000 * matrices) - together).abs().max() < 1e-4
    assert torch.allclose(torch.cat([orthonormalize(m[None]) for m in matrices]), together, atol=1e-5)


def test_nothing_to_move_is_no_movement():
    assert torch.equal(orthonormalize(torch.zeros(2, 3, 5)), torch.zeros(2, 3, 5))


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (24, 2, 1, 3)], ids=["wide", "tall"])
def test_muon_is_nesterov_momentum_orthonormalized(shape):
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(shape))
    optimizer = Muon([kernel], lr=0.1, momentum=0.9, weight_decay=0.5)
    expected, momentum = kernel.detach().clone(), torch.zeros(shape)
    for _ in range(3):
        kernel.grad = torch.randn(shape)
        momentum = 0.9 * momentum + 0.1 * kernel.grad
        update = 0.1 * kernel.grad + 0.9 * momentum
        rows = shape[0]
        moved = orthonormalize(update.reshape(1, rows, -1)).reshape(shape)
        tall = math.sqrt(max(1, rows / (kernel.numel() // rows)))
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * tall * moved
        optimizer.step()
        assert torch.allclose(kernel, expected, atol=1e-5)


def test_muon_leaves_a_kernel_without_gradient_alone():
    kernel = nn.Parameter(torch.ones(2, 4, 1, 1))
    Muon([kernel], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(kernel, torch.ones(2, 4, 1, 1))


def test_muon_levels_kernels_of_one_shape_together_as_apart(monkeypatch):
    torch.manual_seed(0)
    kernels = [nn.Parameter(torch.randn(4, 6, 1, 1)) for _ in range(3)] + [nn.Parameter(torch.randn(2, 6, 1, 1))]
    alone = [nn.Parameter(kernel.detach().clone()) for kernel in kernels]
    for kernel, single in zip(kernels, alone, strict=True):
        kernel.grad = torch.randn(kernel.shape)
        single.grad = kernel.grad.clone()
        Muon([single], lr=0.1).step()
    calls = []
    monkeypatch.setattr(
        optim, "orthonormalize", lambda matrices: calls.append(len(matrices)) or orthonormalize(matrices)
    )
    Muon(kernels, lr=0.1).step()
    assert calls == [3, 1]
    for kernel, single in zip(kernels, alone, strict=True):
        assert torch.allclose(kernel, single, atol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_muon_is_timms_muon(monkeypatch, weight_decay):
    """The class of timm, told to compute in float32: scale, momentum, weight decay, any layout."""
    iterate = timm.optim.muon.zeropower_via_newtonschulz
    monkeypatch.setattr(timm.optim.muon, "zeropower_via_newtonschulz", partial(iterate, dtype=torch.float32))
    torch.manual_seed(0)
    weights = [torch.randn(shape) for shape in [(8, 16, 3, 3)] * 3 + [(64, 8, 1, 1), (8, 16, 3, 3)]]
    ours, plain, theirs = (
        [nn.Parameter(weight.clone(memory_format=layout)) for weight in weights]
        for layout in (torch.channels_last, torch.contiguous_format, torch.contiguous_format)
    )
    optimizers = [
        Muon(ours, lr=0.1, weight_decay=weight_decay),
        Muon(plain, lr=0.1, weight_decay=weight_decay),
        timm.optim.Muon(
            theirs, lr=0.1, momentum=0.95, weight_decay=weight_decay, nesterov=True, ns_coefficients="original",
            adjust_lr_fn="original",
        ),
    ]  # fmt: skip
    for _ in range(4):
        for kernels in zip(ours, plain, theirs, strict=True):
            gradient = torch.randn(kernels[0].shape)
            for kernel in kernels:
                kernel.grad = gradient.clone(memory_format=torch.preserve_format)
        for optimizer in optimizers:
            optimizer.step()
    for one, same, other in zip(ours, plain, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(same, one, rtol=1e-5, atol=1e-5, check_stride=False)


def test_one_cycle_rises_by_a_line_and_falls_by_a_cosine_to_nothing():
    shares = [one_cycle(step, 100) for step in range(100)]
    assert shares[:20] == pytest.approx([(step + 1) / 21 for step in range(20)])
    assert shares[20:] == pytest.approx([(1 + math.cos(math.pi * step / 80)) / 2 for step in range(80)])
    assert max(shares) == shares[20] == 1.0
    assert 0 < shares[-1] < 0.001


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_one_cycle_of_few_steps_moves_in_each(steps):
    assert all(0 < one_cycle(step, steps) <= 1 for step in range(steps))


def optimizers_of(module, name, published=torch.optim.Adam, steps=12, weight_decay=0.02):
    config = HashConfig(optimizer=name, learning_rate=0.01, muon_lr=0.05, weight_decay=weight_decay)
    modules = {"student": module, "projection_head": nn.Identity()}
    return Optimizers(modules, config, steps, "test", "float32", published)


def module_of(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(TinyStudent(seed), nn.Linear(32, 5)).to(memory_format=torch.channels_last)


def train(module, optimizers, steps):
    for step in steps:
        images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(step))
        images = images.to(memory_format=torch.channels_last)
        optimizers.step((module(images) - images.mean()).square().mean(), step)


def state_bytes(module):
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in module.state_dict().items()}


ALL = [("muon", None), ("adamw", None), ("published", torch.optim.Adam), ("published", torch.optim.RMSprop)]


@pytest.mark.parametrize(("name", "published"), ALL, ids=["muon", "adamw", "Adam", "RMSprop"])
@pytest.mark.parametrize("stop", [1, 7])
def test_a_packed_state_continues_to_the_byte(tmp_path, name, published, stop):
    whole = module_of()
    optimizers = optimizers_of(whole, name, published)
    train(whole, optimizers, range(12))
    packed_whole = optimizers.pack()

    first = module_of()
    optimizers = optimizers_of(first, name, published)
    train(first, optimizers, range(stop))
    save_tensors(tmp_path / "state.safetensors", optimizers.pack(), {})  # the file forgets the order in memory

    second = module_of(seed=9)
    optimizers = optimizers_of(second, name, published)
    optimizers.unpack(load_tensors(tmp_path / "state.safetensors", "state")[0])
    assert state_bytes(second) == state_bytes(first)
    train(second, optimizers, range(stop, 12))
    assert state_bytes(second) == state_bytes(whole)
    packed = optimizers.pack()
    assert packed.keys() == packed_whole.keys()
    for key, value in packed.items():
        assert torch.equal(value, packed_whole[key]), key
        assert value.stride() == packed_whole[key].stride(), key


@pytest.mark.parametrize(("name", "published"), ALL, ids=["muon", "adamw", "Adam", "RMSprop"])
def test_the_moments_are_part_of_what_is_continued(name, published):
    """Without them the continuation differs: so the test above can fail."""
    whole, cut = module_of(), module_of()
    optimizers = optimizers_of(whole, name, published)
    train(whole, optimizers, range(4))
    weights = {key: value.clone() for key, value in optimizers.pack().items() if not key.startswith("optimizer.")}
    train(whole, optimizers, range(4, 6))
    optimizers = optimizers_of(cut, name, published)
    optimizers.unpack(weights)
    train(cut, optimizers, range(4, 6))
    assert state_bytes(cut) != state_bytes(whole)


def test_a_state_of_another_architecture_is_a_sentence():
    packed = optimizers_of(module_of(), "muon").pack()
    other = nn.Sequential(TinyStudent(), nn.Linear(32, 6))
    with pytest.raises(DistilhashError, match=r"of another architecture; .*--output"):
        optimizers_of(other, "muon").unpack(packed)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_weight_decay_is_for_kernels_and_matrices_only(name):
    module = module_of()
    before = {key: value.detach().clone() for key, value in module.named_parameters()}
    loss = sum((parameter * 0).sum() for parameter in module.parameters())  # gradients of zero: only decay moves
    optimizers_of(module, name, steps=1, weight_decay=0.5).step(loss, 0)
    share = one_cycle(0, 1)
    for key, value in module.named_parameters():
        rate = 0.05 if name == "muon" and key == "0.layers.3.weight" else 0.01  # Muon's is the second kernel
        kept = 1 - share * rate * 0.5 if value.ndim > 1 else 1.0
        assert torch.allclose(value, before[key] * kept, rtol=1e-6), key


def test_the_published_rate_is_constant_and_the_others_cycle():
    for name, shares in (("published", [1.0, 1.0]), ("adamw", [one_cycle(0, 12), one_cycle(6, 12)])):
        module = module_of()
        optimizers = optimizers_of(module, name)
        for step, share in zip((0, 6), shares, strict=True):
            train(module, optimizers, [step])
            assert {group["lr"] for member in optimizers.members for group in member.param_groups} == {0.01 * share}


def test_frozen_parameters_are_left_out():
    module = module_of()
    module[0].requires_grad_(False)
    before = state_bytes(module)
    optimizers = optimizers_of(module, "muon")
    assert len(optimizers.members) == 1  # no kernel is left for Muon
    module.eval()
    train(module, optimizers, range(2))
    changed = {name for name, content in state_bytes(module).items() if content != before[name]}
    assert changed == {"1.weight", "1.bias"}
