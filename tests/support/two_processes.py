"""Trains a small tokenizer on however many processes launched it; every rank writes its weights."""

import sys
from pathlib import Path

import torch
from accelerate import PartialState

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unit.test_train import Batches, config, model

from worldvq.files.weights import save_module
from worldvq.models.losses import tokenizer_loss
from worldvq.training.fit import fit

if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    trained = fit(model(), tokenizer_loss, Batches(8), config(steps=8), out / "run", summary="test")
    save_module(out / f"rank{PartialState().process_index}.safetensors", trained)
