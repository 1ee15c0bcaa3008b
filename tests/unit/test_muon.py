"""Muon by itself: against PyTorch's, and shared over processes."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from support.training import finish, start

from worldvq.files.weights import read_tensors, to_bytes
from worldvq.training.muon import Muon, _shares, orthogonalize

SHAPES = [(8, 8), (24, 8), (8, 24), (8, 8), (8, 24), (16, 4), (4, 16), (8, 24), (1, 5), (32, 96)]


def trained(make):
    """Matrices after four steps of an optimizer; one gets no gradient at first."""
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES]
    optimizer = make(matrices)
    for step in range(4):
        for index, matrix in enumerate(matrices):
            matrix.grad = torch.randn(matrix.shape, generator=generator) if step or index else None
        optimizer.step()
    return [matrix.detach() for matrix in matrices]


def ours(matrices):
    return Muon(matrices, lr=0.02, weight_decay=0.1)


def test_it_takes_the_steps_of_pytorch_s_muon():
    theirs = trained(lambda p: torch.optim.Muon(p, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"))
    for one, other in zip(trained(ours), theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(16, 16), (12, 40), (40, 12)])
def test_singular_values_come_near_one(shape):
    (result,) = orthogonalize([torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()])
    values = torch.linalg.svdvals(result.double())
    assert values.min() > 0.3 and values.max() < 1.3


def test_a_matrix_of_zeros_stays_one():
    assert all(torch.equal(m, torch.zeros(4, 6)) for m in orthogonalize([torch.zeros(4, 6, dtype=torch.bfloat16)]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 600), st.integers(1, 600)), max_size=40), st.integers(1, 9))
def test_every_matrix_is_somebody_s_and_nobody_has_much_more(shapes, count):
    shares = _shares(shapes, count)
    assert sorted(index for share in shares for index in share) == list(range(len(shapes)))
    loads = [sum(min(shapes[i]) ** 2 * (2 * max(shapes[i]) + min(shapes[i])) for i in share) for share in shares]
    costliest = max((min(shape) ** 2 * (2 * max(shape) + min(shape)) for shape in shapes), default=0)
    assert max(loads) - min(loads) <= costliest


def train_shared(out: Path) -> None:
    """Take the steps among others; leaves the matrices."""
    dist.init_process_group("gloo")
    found = {str(index): matrix for index, matrix in enumerate(trained(ours))}
    (out / f"{os.environ['RANK']}.safetensors").write_bytes(to_bytes(found))
    dist.destroy_process_group()


@pytest.mark.parametrize("count", [2, 3])
def test_processes_that_share_it_take_the_same_steps_to_the_bit(tmp_path, count):
    jobs = start(count, tmp_path / "log", train_shared, tmp_path)
    assert finish(jobs) == [0] * count, jobs[0].log.read_text()
    for rank in range(count):
        found = read_tensors(tmp_path / f"{rank}.safetensors")
        for index, matrix in enumerate(trained(ours)):
            assert torch.equal(found[str(index)], matrix)
