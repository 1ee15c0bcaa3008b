"""Where the weights of a run begin: at random, or with those of another run, world or image prior."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from worldvq.errors import UsageError
from worldvq.files.reading import read_sealed
from worldvq.files.weights import check_fit, hash_module, layout_of, layout_of_tensors
from worldvq.models.image_prior import ImagePrior
from worldvq.models.loading import load_tokenizer
from worldvq.models.tokenizer import Tokenizer
from worldvq.training.checkpoints import Checkpoints
from worldvq.training.identity import INPUTS
from worldvq.world.images import IMAGE_MODEL_FILE, ImageModel
from worldvq.world.model import WORLD_FILE, WorldModel

PRIOR, CONTEXT = "prior.", "prior.from_context."


def start_from(folder: Path, model: nn.Module, tokenizer_hash: str | None = None) -> str:
    """Fill a tokenizer, a dynamics model or an image prior with the weights of a run folder, world or image prior.

    Of an image prior a dynamics model takes the prior, which has to be of its sizes, but for the weights that bring the
    context in: there it was a class, if anything. The rest stays as it is.

    Args:
        folder: A world; an image prior; or of a tokenizer, a run that is done; or of another model, a run, whose newest
            checkpoint is taken.
        model: What is to be trained.
        tokenizer_hash: Of what made the tokens that it is trained on. Where the weights learned those of another one,
            which have other meanings, that is said.

    Returns:
        The hash of the weights.

    Raises:
        UsageError: There is none in the folder.
        CorruptFileError: A file is damaged, or its model has other sizes; names all that differ.
    """
    is_tokenizer, is_prior = isinstance(model, Tokenizer), isinstance(model, ImagePrior)
    expected, made_by = layout_of(model), None
    if (folder / WORLD_FILE).is_file() and not is_prior:
        world = WorldModel.load(folder, "cpu")
        made_by = hash_module(world.tokenizer)
        tensors = (world.tokenizer if is_tokenizer else world.dynamics).state_dict()
    elif (folder / IMAGE_MODEL_FILE).is_file():
        images = ImageModel.load(folder, "cpu")
        made_by = hash_module(images.tokenizer)
        tensors = (images.tokenizer if is_tokenizer else images.prior).state_dict()
        if not is_tokenizer and not is_prior:
            tensors = {name: value for name, value in tensors.items() if _is_shared(name)}
            expected = {name: layout for name, layout in expected.items() if _is_shared(name)}
    elif is_tokenizer:
        tensors = load_tokenizer(folder).state_dict()
    else:
        checkpoints = Checkpoints(folder / "checkpoints", keep=2)
        if not checkpoints.steps():
            what = "an image prior" if is_prior else "a dynamics model, and is no world or image prior"
            raise UsageError(f"--from {folder} has no checkpoint of {what}: give one of them")
        tensors, inputs = checkpoints.read_weights(), folder / INPUTS
        made_by = read_sealed(inputs).get("tokenizer_hash") if inputs.is_file() else None
    check_fit(folder, expected, layout_of_tensors(tensors), "give the config that it was trained with")
    if None not in (tokenizer_hash, made_by) and tokenizer_hash != made_by:
        print(f"warning: --from {folder} learned the tokens of another tokenizer, in which codes mean other things")
    model.load_state_dict(tensors, strict=len(expected) == len(layout_of(model)))
    return hash_module(model)


def _is_shared(name: str) -> bool:
    """Whether a tensor of an image prior means the same in a dynamics model."""
    return name.startswith(PRIOR) and not name.startswith(CONTEXT)
