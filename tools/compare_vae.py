"""What does the discrete latent cost? A VAE of the same encoder and decoder, trained as long, in bits per dimension.

    python tools/compare_vae.py --world runs/maze/world --data runs/maze/data --config maze --out runs/maze_vae

Van den Oord et al. 2017, section 4.1, compare 4.67 bits/dim of a VQ-VAE with 4.51 of a VAE on CIFAR-10. Here a latent
of the tokenizer's grid and code dimension is Gaussian (Kingma & Welling 2013): the encoder says mean and variance, the
prior is N(0, I), the likelihood the same discretised logistic, whose scale is learnt along; the loss is the bound, with
one draw of the latent. (The tokenizer was trained on its own loss, and only its scale fitted afterwards.) Steps,
batches and optimizer are those of `tokenizer_training` in the config. Both are scored on the frames that `worldvq
likelihood` scores. Run again to continue.
"""

from __future__ import annotations

import argparse
import functools
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from worldvq.data.clips import ClipSampler
from worldvq.data.episodes import EpisodeStore
from worldvq.evaluation.likelihood import measure_likelihood, scored_clips
from worldvq.models.config import TokenizerConfig
from worldvq.models.likelihood import BATCH, logistic_nats
from worldvq.models.loading import load_tokenizer
from worldvq.models.tokenizer import Tokenizer
from worldvq.stages.experiment import load_config
from worldvq.training.fit import fit
from worldvq.training.identity import begin_run
from worldvq.types import Clip, frames_to_model
from worldvq.world.model import WorldModel

SCALE_RATE = 10.0
"""How much faster than weights the log scale learns: in few steps it has to fall by more than their rates add up to."""


class GaussianAutoencoder(nn.Module):
    """A tokenizer's encoder and decoder with a Gaussian latent between them."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        quantizer = config.quantizer.model_copy(update={"code_dim": 2 * config.quantizer.code_dim})
        # The encoder's last layer says twice as many numbers: means and log variances.
        self.encoder = Tokenizer(config.model_copy(update={"quantizer": quantizer})).encoder
        self.decoder = Tokenizer(config).decoder
        self.scale = nn.Parameter(torch.full((3,), math.log(0.1) / SCALE_RATE))

    @property
    def log_scale(self) -> Tensor:
        """Of the logistic, (3,)."""
        return SCALE_RATE * self.scale

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return nats of frames (N, 3, H, W): minus log p(x|z) of one z drawn from q(z|x), and KL(q(z|x) || p(z))."""
        encoded = self.encoder(frames.contiguous(memory_format=torch.channels_last)).float()
        mean, log_variance = encoded.chunk(2, dim=1)  # (N, D, h, w) each
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)  # appendix B of the paper
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        nats = logistic_nats(frames, self.decoder(z).float(), self.log_scale)
        return nats.sum((1, 2, 3)), kl.sum((1, 2, 3))


def vae_loss(model: nn.Module, clip: Clip) -> tuple[Tensor, dict[str, Tensor]]:
    """The negative bound in nats per dimension, and its two parts in bits."""
    frames = frames_to_model(clip.frames[clip.mask])
    reconstruction, kl = (part.mean() / frames[0].numel() for part in model(frames))
    loss = (reconstruction + kl) * clip.mask.float().mean()
    bits = {"reconstruction_bits": reconstruction, "kl_bits": kl}
    return loss, {name: part.detach() / math.log(2) for name, part in bits.items()}


@torch.no_grad()
def score(model: GaussianAutoencoder, frames: Tensor) -> tuple[float, float]:
    """Bits per dimension of frames (N, H, W, 3) uint8: of the frames given z, and of z."""
    torch.manual_seed(0)
    parts = [model(frames_to_model(part)) for part in frames.split(BATCH)]
    given, latent = (torch.cat(column).double().mean() for column in zip(*parts, strict=True))
    to_bits = 1 / (frames[0].numel() * math.log(2))
    return float(given) * to_bits, float(latent) * to_bits


def table(rows: dict[str, tuple[float, float]]) -> str:
    """Rows of bits given the latent and bits of the latent, as Markdown."""
    lines = ["| bits per dimension | given the latent | latent | in all |", "|---|---|---|---|"]
    for name, (given, latent) in rows.items():
        lines.append(f"| {name} | {given:.3f} | {latent:.3f} | {given + latent:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Train, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, required=True, help="a trained world, or a tokenizer")
    parser.add_argument("--data", type=Path, required=True, help="the dataset that it was trained on")
    parser.add_argument("--score-on", type=Path, help="dataset of the held-out frames, where it is not --data")
    parser.add_argument("--config", default="maze", help="whose tokenizer_training the tokenizer was trained with")
    parser.add_argument("--clips", type=int, default=64, help="as worldvq likelihood has it (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="run folder of the VAE")
    parser.add_argument("override", nargs="*", help="key.path=value, for instance tokenizer_training.steps=300")
    arguments = parser.parse_args()
    training = load_config(arguments.config, arguments.override).tokenizer_training
    alone = (arguments.world / "tokenizer.json").is_file()
    world = load_tokenizer(arguments.world) if alone else WorldModel.load(arguments.world, "cpu")
    config = (world if isinstance(world, Tokenizer) else world.tokenizer).config
    store = EpisodeStore.open(arguments.data)
    torch.manual_seed(training.seed)
    model = GaussianAutoencoder(config)
    samplers = [ClipSampler(store, split, 1, training.batch_size, training.seed) for split in ("train", "heldout")]
    sections = {"vae": config.model_dump(mode="json"), "vae_training": training.model_dump(mode="json")}
    begin = functools.partial(begin_run, arguments.out, "vae", sections, {"data": store.fingerprint()})
    latent = math.prod(config.grid) * config.quantizer.code_dim
    summary = f"VAE, {latent} Gaussian numbers a frame"
    fit(
        model, vae_loss, samplers[0], training, arguments.out,
        summary=summary, heldout=samplers[1], begin=begin, device="cpu",
    )  # fmt: skip
    found = measure_likelihood(world, arguments.score_on or arguments.data, arguments.clips, fit_on=arguments.data)
    clip, context, _ = scored_clips(world, EpisodeStore.open(arguments.score_on or arguments.data), arguments.clips)
    frames = clip.frames[:, context:].flatten(0, 1)
    rows = {f"VQ-VAE, {name}": (found.reconstruction, bits) for name, bits in found.priors.items()}
    print(table(rows | {f"VAE, {latent} Gaussian numbers": score(model.eval(), frames)}))


if __name__ == "__main__":
    main()
