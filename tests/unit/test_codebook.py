"""Rows drawn from the global batch of real processes with unequal shares, against NumPy on the whole of it."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from safetensors.torch import load_file, save_file

from worldvq.nn.codebook import draw_rows, random_words

SIZES = {1: [[5, 11]], 2: [[10, 1], [6, 4]], 3: [[3, 2], [0, 7], [9, 5]]}
"""Rows of each pass of each process."""
DRAWN = 30_000


def shares(world):
    """The rows of each pass of each process: numbered in the order of the global batch, pass before process."""
    numbered, begin = [[] for _ in range(world)], 0
    for number in range(2):
        for rank, sizes in enumerate(SIZES[world]):
            end = begin + sizes[number]
            numbered[rank].append(torch.arange(begin, end).float()[:, None] + torch.tensor([0.0, 0.5]))
            begin = end
    return numbered


def draw_on_rank(rank, world, where):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{where}/meet", rank=rank, world_size=world)
    save_file(draw(shares(world)[rank], rank), f"{where}/{rank}.safetensors")
    dist.destroy_process_group()


def draw(passes, rank):
    torch.manual_seed(7)
    drawn, finite = draw_rows(passes, DRAWN)
    if rank == 0:
        passes[1][-1, 0] = float("inf")
    return {"drawn": drawn, "finite": finite, "with_infinity": draw_rows(passes, 4)[1]}


@pytest.mark.parametrize("world", list(SIZES))
def test_rows_are_drawn_from_the_global_batch_whoever_holds_them(tmp_path, world):
    if world == 1:
        found = [draw(shares(1)[0], 0)]
    else:
        multiprocessing.spawn(draw_on_rank, (world, str(tmp_path)), nprocs=world)
        found = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(world)]
    total = sum(map(sum, SIZES[world]))
    torch.manual_seed(7)
    picks = torch.randint(total, (DRAWN,)).numpy()
    for one in found:
        np.testing.assert_array_equal(one["drawn"].numpy(), picks[:, None] + np.array([0, 0.5]))
        assert one["finite"] and not one["with_infinity"]
    count = np.bincount(found[0]["drawn"][:, 0].long().numpy(), minlength=total)
    assert len(count) == total
    chi_squared = ((count - DRAWN / total) ** 2 / (DRAWN / total)).sum()
    assert chi_squared < total - 1 + 5 * (2 * (total - 1)) ** 0.5


@pytest.mark.parametrize("bound", [1, 7, 4096, 2**27 + 13])
@pytest.mark.parametrize("number", [1, 2, 5, 512])
def test_words_are_those_of_randint(bound, number):
    torch.manual_seed(3)
    expected = torch.randint(bound, (number,))
    torch.manual_seed(3)
    assert torch.equal(random_words(number) % bound, expected)
