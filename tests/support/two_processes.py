"""Trains a small tokenizer on however many processes launched it; every rank writes its weights."""

import sys
from pathlib import Path

import torch
from accelerate import PartialState

from support.batches import Batches
from support.tokenizers import make_tokenizer
from worldvq.files.weights import save_module
from worldvq.models.losses import tokenizer_loss
from worldvq.training.config import TrainConfig
from worldvq.training.fit import fit

if __name__ == "__main__":
    torch.set_num_threads(1)
    out, config = Path(sys.argv[1]), TrainConfig(steps=8, batch_size=8)
    trained = fit(make_tokenizer(), tokenizer_loss, Batches(8), config, out / "run", summary="test")
    save_module(out / f"rank{PartialState().process_index}.safetensors", trained)
