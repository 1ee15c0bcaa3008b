"""Training the image prior on the tokens of single frames, and joining it with its tokenizer into an image model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import worldvq
from worldvq.data.joined import LabelledSampler, classes_of
from worldvq.data.tokens import TokenStore
from worldvq.media.pictures import save_png
from worldvq.media.tiles import grid
from worldvq.models.image_prior import ImagePrior
from worldvq.models.loading import load_tokenizer
from worldvq.models.losses import image_prior_loss
from worldvq.models.tokenizer import Tokenizer
from worldvq.stages.experiment import ExperimentConfig, PriorSections, defaults
from worldvq.stages.heldout import with_heldout
from worldvq.stages.start import start_from
from worldvq.stages.tokens import open_tokens
from worldvq.training.fit import fit
from worldvq.training.identity import begin_run
from worldvq.training.processes import make_accelerator
from worldvq.world.images import ImageModel

ALL = "all"
"""The one class of a prior that is not told of classes."""
PICTURE_ROWS = PICTURE_COLUMNS = 8


def train_prior(
    config: ExperimentConfig,
    tokens: Sequence[Path],
    tokenizer: Path,
    out: Path,
    trackers: Sequence[str] = (),
    device: str = "auto",
    start: Path | None = None,
) -> ImageModel:
    """Train an image prior on token stores, and leave it in ``out``, its tokenizer beside it.

    With ``start`` the weights begin with those of another image prior, see :func:`~worldvq.stages.start.start_from`.

    Raises:
        UsageError: Tokens were made by another tokenizer, ``out`` holds another run, or the device is not there.
    """
    vqvae = load_tokenizer(tokenizer)
    opened = [open_tokens(path, tokenizer, vqvae) for path in tokens]
    stores, made = [store for store, _ in opened], opened[0][1]
    classes = classes_of(stores) if config.prior.classes else (ALL,)
    training = config.prior_training
    main = make_accelerator(training.precision, device=device).is_main_process
    if main:
        _warn_of_classes_without_training(stores, classes)
    torch.manual_seed(training.seed)
    model = ImagePrior(config.prior, vqvae.grid, vqvae.num_codes, len(classes))
    model.initialize_embeddings(vqvae.quantizer.codebook)
    started = start_from(start, model, made["tokenizer_hash"] if main else None) if start else None
    batches = LabelledSampler(stores, "train", training.batch_size, training.seed, classes)
    held = with_heldout(stores)
    heldout = LabelledSampler(held, "heldout", training.batch_size, training.seed, classes) if held else None
    height, width = vqvae.grid
    of = f"{len(classes)} classes" if len(classes) > 1 else "one class"
    inputs = {**made, "tokens": [store.fingerprint() for store in stores], "classes": classes, "start": started}
    sections = config.sections(PriorSections)
    model = fit(
        model,
        image_prior_loss,
        batches,
        training,
        out,
        summary=f"image prior, {height * width} tokens a frame, {of}",
        heldout=heldout,
        picture=_sheet(vqvae, classes, training.seed, out),
        begin=functools.partial(begin_run, out, "prior", sections, inputs, defaults(PriorSections)),
        trackers=trackers,
        device=device,
    )
    assert isinstance(model, ImagePrior)
    meta = {
        "env_ids": [store.environment for store in stores],
        "training": {"prior_training": sections["prior_training"]},
        "versions": {"worldvq": worldvq.__version__},
    }
    joined = ImageModel(vqvae.to(next(model.parameters()).device), model, classes, meta)
    if main:
        joined.save(out)
    return joined


def _warn_of_classes_without_training(stores: Sequence[TokenStore], classes: Sequence[str]) -> None:
    if len(classes) == 1:
        return
    trained = {store.label(number) for store in stores for number in store.numbers("train")}
    if missing := [name for name in classes if name not in trained]:
        print(f"warning: every episode of {', '.join(missing)} is held out: nothing is learnt of it", flush=True)


def _sheet(
    vqvae: Tokenizer, classes: Sequence[str], seed: int, out: Path
) -> Callable[[torch.nn.Module, int], np.ndarray]:
    """Return the picture of a run: samples, a row a class, the first few classes; always with the same noise."""
    rows = min(len(classes), PICTURE_ROWS)

    def picture(model: Any, step: int) -> np.ndarray:
        here = ImageModel(vqvae.to(next(model.parameters()).device), model, classes, {})
        labels, seeds = np.divmod(np.arange(rows * PICTURE_COLUMNS), PICTURE_COLUMNS)
        frames = here.tokenizer.render(here.sample(labels, seeds, seed, method="predictive").tokens)
        drawn = grid(frames.unflatten(0, (rows, PICTURE_COLUMNS)).numpy(), scale=2)
        save_png(out / "pictures" / f"{step:08d}.png", drawn)
        return drawn

    return picture
