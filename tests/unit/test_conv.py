"""Convolutions whose kernels are matrices are convolutions, and patches come back where they were."""

import pytest
import torch
import torch.nn.functional as F

from worldvq.models.config import TokenizerConfig
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.config import QuantizerConfig
from worldvq.nn.conv import Convolution, TransposedConvolution, down, up
from worldvq.training.config import OptimizerConfig
from worldvq.training.optimizers import make_optimizer


@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_convolution_is_the_sum_over_its_taps(size):
    layer, x = Convolution(4, 6, size), torch.randn(2, 4, 5, 7)
    torch.nn.init.normal_(layer.bias)
    padded = F.pad(x, [size // 2] * 4)
    expected = layer.bias.view(1, 6, 1, 1).expand(2, 6, 5, 7).clone()
    for row in range(size):
        for column in range(size):
            tap = layer.weight[:, (row * size + column) * 4 :][:, :4]  # (out, in)
            expected = expected + torch.einsum("oc,bchw->bohw", tap, padded[:, :, row : row + 5, column : column + 7])
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_a_patch_depends_on_its_own_pixels_and_is_drawn_in_its_own_place():
    low, high = down(3, 8, 4), up(8, 3, 4)
    x = torch.randn(1, 3, 8, 12)
    other = x.clone()
    other[..., 4:8, 8:12] += 1
    changed = (low(other) - low(x)).abs().sum(1)[0] > 1e-6  # (2, 3)
    assert changed.nonzero().tolist() == [[1, 2]]
    features = torch.randn(1, 8, 2, 3)
    moved = features.clone()
    moved[..., 0, 1] += 1
    pixels = (high(moved) - high(features)).abs().sum(1)[0] > 1e-6  # (8, 12)
    assert pixels.nonzero().amin(0).tolist() == [0, 4] and pixels.nonzero().amax(0).tolist() == [3, 7]


@pytest.mark.parametrize(("downsample", "size"), [(4, (12, 20)), (8, (16, 24)), (16, (32, 48))])
def test_tokenizers_of_every_factor_return_the_size_they_were_given(downsample, size):
    config = TokenizerConfig(
        frame_size=size, downsample=downsample, width=8, quantizer=QuantizerConfig(num_codes=16, code_dim=4)
    )
    tokenizer = Tokenizer(config).eval()
    output = tokenizer(torch.randn(2, 3, *size))
    assert output.frames.shape == (2, 3, *size)
    assert output.tokens.shape == (2, size[0] // downsample, size[1] // downsample) == (2, *tokenizer.grid)


@pytest.mark.parametrize("architecture", ["patches", "strided"])
def test_muon_trains_every_kernel_of_a_tokenizer_and_no_bias(architecture):
    tokenizer = Tokenizer(TokenizerConfig(frame_size=(16, 16), width=8, architecture=architecture))
    optimizer = make_optimizer(tokenizer, OptimizerConfig(kind="muon"))
    muon = {id(p) for p in optimizer.param_groups[0]["params"]}
    kernels = {id(m.weight) for m in tokenizer.modules() if isinstance(m, Convolution | TransposedConvolution)}
    tables = {id(p) for p in tokenizer.parameters() if p.ndim == 2} - {id(tokenizer.quantizer.codebook)}
    assert muon == kernels == tables
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(p) for p in tokenizer.parameters()
    }
