"""How fast a WaveNet draws sound on one core: with queues, without, and by predictive sampling.

    python tools/bench_wavenet.py

Without queues every sample takes a pass over all samples so far: a few passes over the whole length are timed, and what
they would take for all samples is computed from that. Seconds are those of the processor, so that what else it does
counts little. How many passes predictive sampling takes depends on how well
samples can be told from those before: so it is measured on random weights and again after some training on a synthetic
voice (harmonics of a gliding pitch under moving formants, and a little noise).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worldvq.models.config import SamplingConfig, SoundTokenizerConfig
from worldvq.models.sampling import draw_noise, predictive, sequential
from worldvq.models.sound import SoundTokenizer
from worldvq.nn.mulaw import SILENCE
from worldvq.nn.noise import stream_keys
from worldvq.training.config import OptimizerConfig
from worldvq.training.optimizers import make_optimizer

T = TypeVar("T")
RATE = 16_000
BATCH, CROP = 4, 1024
WINDOWS = (4, 16, 64)


def voice(num_samples: int, seed: int) -> Tensor:
    """A synthetic voice (num_samples,) in [-1, 1]."""
    rng = np.random.default_rng(seed)
    points = max(2, num_samples // 3200)  # pitch, formants and loudness change every 0.2 s

    def course(low: float, high: float) -> np.ndarray:
        return np.interp(np.linspace(0, points - 1, num_samples), np.arange(points), rng.uniform(low, high, points))

    pitch, loudness = course(90, 220), course(0, 1)
    formants = [(course(300, 800), 80), (course(900, 2300), 120)]
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    sound = np.zeros(num_samples)
    for harmonic in range(1, 25):
        share = sum(1 / (1 + ((harmonic * pitch - centre) / width) ** 2) for centre, width in formants)
        sound += share * np.sin(harmonic * phase)
    sound = 0.15 * loudness * sound + 0.002 * rng.standard_normal(num_samples)
    return torch.from_numpy(sound.clip(-1, 1)).float()


def train(model: SoundTokenizer, steps: int) -> None:
    """Train on crops of a minute of the voice; prints the loss now and then."""
    sound, generator = voice(60 * RATE, seed=0), torch.Generator().manual_seed(0)
    optimizer = make_optimizer(model, OptimizerConfig(kind="muon", learning_rate=5e-3))
    speaker, begun = torch.zeros(BATCH, dtype=torch.int64), time.process_time()
    model.train()
    for step in range(steps):
        starts = torch.randint(len(sound) - CROP, (BATCH,), generator=generator).tolist()
        found = model(torch.stack([sound[start : start + CROP] for start in starts]), speaker)
        nats = F.cross_entropy(found.logits.flatten(0, 1), found.classes.flatten())
        (nats + found.quantizer_loss).backward()
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step + 1 == steps:
            taken = time.process_time() - begun
            print(f"  step {step:>4}: {float(nats.detach()):.2f} nats a sample, {taken:.0f} s", flush=True)
    model.eval()


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that a call takes, and what it returns."""
    begun = time.process_time()
    result = call()
    return time.process_time() - begun, result


@torch.no_grad()
def measure_uncached(model: SoundTokenizer, length: int, passes: int) -> float:
    """Print and return the samples a second of full passes, at the end of ``length`` samples."""
    tokens = torch.randint(model.num_codes, (1, length // model.config.hop))
    told = model.context(model.quantizer.lookup(tokens[:, None]), torch.zeros(1, dtype=torch.int64))
    whole = torch.full((1, 1, length), SILENCE)
    model.decoder(whole, told)
    seconds = min(timed(lambda: model.decoder(whole, told))[0] for _ in range(passes))
    hops = -(-model.decoder.reach // model.config.hop)
    part, part_told = whole[..., : hops * model.config.hop], told[:, :, :hops]
    of_reach = min(timed(lambda: model.decoder(part, part_told))[0] for _ in range(passes))
    print(f"uncached, the whole second each: {1 / seconds:,.2f} samples/s; extrapolated from {passes} passes")
    print(f"uncached, all samples so far:    {2 / seconds:,.2f} samples/s; from the same, on average half as long")
    print(f"uncached, as far as it sees:     {1 / of_reach:,.2f} samples/s; passes over {part.shape[-1]:,} samples")
    return 1 / seconds


def measure_drawing(model: SoundTokenizer, length: int) -> float:
    """Print what both ways of drawing take, and return the samples a second of drawing one after the other."""
    with torch.no_grad():
        tokens = model.encode(voice(length, seed=1)[None])
    speaker, sampling = torch.zeros(1, dtype=torch.int64), SamplingConfig()
    noise = draw_noise(model.decoder, stream_keys(0, np.zeros(1), np.zeros(1)), sampling, length)
    sequential(model.start(tokens, speaker), (1, 1, length // 16), noise, sampling)  # a warm-up
    seconds, one = timed(lambda: sequential(model.start(tokens, speaker), (1, 1, length), noise, sampling))
    print(f"cached, one after the other:     {length / seconds:,.0f} samples/s")
    few = length // 4
    draft, its_noise = torch.full((1, 1, few), SILENCE), None if noise is None else noise[:, :few]
    for window in WINDOWS:
        taken, other = timed(lambda w=window: predictive(model.start(tokens, speaker), draft, its_noise, sampling, w))
        same = float((other.tokens == one.tokens[..., :few]).float().mean())
        print(
            f"predictive, {window:>2} samples a pass:   {few / taken:,.0f} samples/s, {int(other.passes):,} passes for "
            f"{few:,} samples, {100 * same:.3f} % the same",
            flush=True,
        )
    return length / seconds


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="of sound")
    parser.add_argument("--steps", type=int, default=200, help="of training before predictive sampling again")
    parser.add_argument("--passes", type=int, default=3, help="full passes to time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = SoundTokenizerConfig()
    model = SoundTokenizer(config, num_speakers=1, rate=RATE).eval()
    length = int(arguments.seconds * RATE) // config.hop * config.hop
    count = sum(parameter.numel() for parameter in model.decoder.parameters())
    sizes = f"{len(model.decoder.layers)} layers of {config.decoder.width} channels, {count:,} parameters"
    print(f"{sizes}, sees {model.decoder.reach:,} samples")
    uncached = measure_uncached(model, length, arguments.passes)
    print("random weights:")
    cached = measure_drawing(model, length)
    print(f"cached / uncached: {cached / uncached:,.0f} at the whole length, {cached / uncached / 2:,.0f} on average")
    if arguments.steps:
        print(f"after {arguments.steps} steps on a synthetic voice:")
        train(model, arguments.steps)
        measure_drawing(model, length)


if __name__ == "__main__":
    main()
