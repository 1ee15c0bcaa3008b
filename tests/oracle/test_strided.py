"""The paper's own encoder and decoder (van den Oord et al. 2017, section 4.1), against PyTorch's layers and by hand.

"The encoder consists of 2 strided convolutional layers with stride 2 and window size 4x4, followed by two residual 3x3
blocks (implemented as ReLU, 3x3 conv, ReLU, 1x1 conv), all having 256 hidden units. The decoder similarly has two
residual 3x3 blocks, followed by two transposed convolutions with stride 2 and window size 4x4."
"""

import pytest
import torch
from torch import nn

from worldvq.models.config import TokenizerConfig
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.config import QuantizerConfig
from worldvq.nn.conv import Convolution, TransposedConvolution
from worldvq.stages.experiment import load_config
from worldvq.training.config import OptimizerConfig
from worldvq.training.optimizers import make_optimizer


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        three, one = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)
        self.body = nn.Sequential(nn.ReLU(), three, nn.ReLU(), one)

    def forward(self, x):
        return x + self.body(x)


def paper(width, dim, num_halvings=2):
    """The paper's layers, made of PyTorch's own."""

    def low(before):
        return nn.Conv2d(before, width, kernel_size=4, stride=2, padding=1)

    def high(after):
        return nn.ConvTranspose2d(width, after, kernel_size=4, stride=2, padding=1)

    first, last = [low(3)], [high(3)]
    for _ in range(num_halvings - 1):
        first, last = [*first, nn.ReLU(), low(width)], [high(width), nn.ReLU(), *last]
    encoder = nn.Sequential(*first, Residual(width), Residual(width), nn.ReLU(), nn.Conv2d(width, dim, 1))
    decoder = nn.Sequential(nn.Conv2d(dim, width, 1), Residual(width), Residual(width), nn.ReLU(), *last)
    return encoder, decoder


def copy_weights(ours, theirs):
    """Give PyTorch's layers our weights; returns how many layers there were."""
    own = [m for m in ours.modules() if isinstance(m, Convolution | TransposedConvolution)]
    other = [m for m in theirs.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    for mine, layer in zip(own, other, strict=True):
        rows, inner, height, width = layer.weight.shape
        assert isinstance(layer, nn.ConvTranspose2d) == isinstance(mine, TransposedConvolution)
        with torch.no_grad():
            mine.bias.normal_()
            mine.weight.copy_(torch.randn(mine.weight.shape) / mine.weight.shape[1] ** 0.5)  # those that begin at zero
            layer.weight.copy_(mine.weight.reshape(rows, height, width, inner).permute(0, 3, 1, 2))
            layer.bias.copy_(mine.bias)
    return len(own)


def strided(width, dim, size, downsample=4):
    quantizer = QuantizerConfig(num_codes=16, code_dim=dim)
    blocks = {"encoder_blocks": 2, "decoder_blocks": 2}
    return Tokenizer(
        TokenizerConfig(
            architecture="strided", frame_size=size, downsample=downsample, width=width, quantizer=quantizer, **blocks
        )
    ).eval()


@pytest.mark.parametrize(("downsample", "layers"), [(4, 7), (8, 8), (16, 9)])
def test_it_computes_what_the_layers_of_the_paper_compute(downsample, layers):
    torch.manual_seed(0)
    tokenizer = strided(16, 6, (32, 48), downsample)
    encoder, decoder = paper(16, 6, num_halvings=layers - 5)
    assert copy_weights(tokenizer.encoder, encoder) == copy_weights(tokenizer.decoder, decoder) == layers
    frames = torch.randn(2, 3, 32, 48)
    z_e = tokenizer.encoder(frames)
    torch.testing.assert_close(z_e, encoder(frames), rtol=1e-4, atol=1e-4)
    assert z_e.shape == (2, 6, 32 // downsample, 48 // downsample)
    torch.testing.assert_close(tokenizer.decoder(z_e), decoder(z_e), rtol=1e-4, atol=1e-4)
    assert tokenizer.decoder(z_e).shape == frames.shape


def test_the_number_of_parameters_is_that_of_the_paper():
    """Counted by hand: 256 units, two halvings; 64 numbers in a code, which the paper does not say."""
    down_1, down_2 = 4 * 4 * 3 * 256 + 256, 4 * 4 * 256 * 256 + 256  # 12,544 and 1,048,832
    block = (3 * 3 * 256 * 256 + 256) + (1 * 1 * 256 * 256 + 256)  # 590,080 + 65,792
    to_code, from_code = 256 * 64 + 64, 64 * 256 + 256  # 16,448 and 16,640
    up_1, up_2 = 4 * 4 * 256 * 256 + 256, 4 * 4 * 256 * 3 + 3  # 1,048,832 and 12,291
    encoder, decoder = down_1 + down_2 + 2 * block + to_code, from_code + 2 * block + up_1 + up_2
    assert (encoder, decoder) == (2_389_568, 2_389_507)
    config = load_config("imagenet128").for_frames((128, 128), "a folder of images")
    with torch.device("meta"):
        tokenizer = Tokenizer(config.tokenizer)
    assert sum(p.numel() for p in tokenizer.encoder.parameters()) == encoder
    assert sum(p.numel() for p in tokenizer.decoder.parameters()) == decoder
    assert tokenizer.quantizer.codebook.shape == (512, 64)
    assert sum(p.numel() for p in tokenizer.parameters()) == encoder + decoder + 512 * 64


def test_the_settings_are_those_of_the_paper():
    """Section 4.1 and 4.2: 128x128x3 to 32x32x1, K = 512, Adam 2e-4, 250,000 steps of 128; beta = 0.25 (3.2)."""
    config = load_config("imagenet128").for_frames((128, 128), "a folder of images")
    assert config.tokenizer.grid == (32, 32)
    quantizer, training = config.tokenizer.quantizer, config.tokenizer_training
    assert (quantizer.kind, quantizer.num_codes, quantizer.commitment_cost) == ("sgd", 512, 0.25)
    assert (training.steps, training.batch_size) == (250_000, 128)
    optimizer = make_optimizer(torch.nn.Linear(2, 2), training.optimizer)
    assert all(group["lr"] == 2e-4 and group["weight_decay"] == 0 for group in optimizer.param_groups)
    assert isinstance(optimizer, torch.optim.AdamW)  # without decay that is Adam
    from worldvq.training.loop import learning_rate

    assert [learning_rate(step, step / 250_000, training.optimizer) for step in (0, 1000, 249_999)] == [2e-4] * 3


def test_weights_decay_as_those_of_other_convolutions():
    tokenizer = strided(8, 4, (16, 16))
    decayed, free = make_optimizer(tokenizer, OptimizerConfig(kind="adamw", weight_decay=0.1)).param_groups
    assert {p.ndim for p in decayed["params"]} == {2} and decayed["weight_decay"] == 0.1
    kernels = [p for p in tokenizer.parameters() if p.ndim == 2 and p is not tokenizer.quantizer.codebook]
    assert len(decayed["params"]) == len(kernels) == 14 and free["weight_decay"] == 0
