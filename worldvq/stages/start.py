"""Where the weights of a run begin: at random, or with those of another run or world."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from worldvq.errors import UsageError
from worldvq.files.weights import check_fit, hash_module, layout_of, layout_of_tensors
from worldvq.models.loading import load_tokenizer
from worldvq.models.tokenizer import Tokenizer
from worldvq.training.checkpoints import Checkpoints
from worldvq.world.model import WORLD_FILE, WorldModel


def start_from(folder: Path, model: nn.Module) -> str:
    """Fill a tokenizer, or a dynamics model, with the weights of a run folder or of a world.

    Args:
        folder: A world; or of a tokenizer, a run that is done; or of a dynamics model, a run, whose newest checkpoint
            is taken.
        model: What is to be trained.

    Returns:
        The hash of the weights.

    Raises:
        UsageError: There is none in the folder.
        CorruptFileError: A file is damaged, or its model has other sizes; names all that differ.
    """
    is_tokenizer = isinstance(model, Tokenizer)
    if (folder / WORLD_FILE).is_file():
        world = WorldModel.load(folder, "cpu")
        tensors = (world.tokenizer if is_tokenizer else world.dynamics).state_dict()
    elif is_tokenizer:
        tensors = load_tokenizer(folder).state_dict()
    else:
        checkpoints = Checkpoints(folder / "checkpoints", keep=2)
        if not checkpoints.steps():
            raise UsageError(
                f"--from {folder} has no checkpoint of a dynamics model, and is no world: give one of them"
            )
        tensors = checkpoints.read_weights()
    check_fit(folder, layout_of(model), layout_of_tensors(tensors), "give the config that it was trained with")
    model.load_state_dict(tensors)
    return hash_module(model)
