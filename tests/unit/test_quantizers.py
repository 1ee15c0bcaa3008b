"""What all quantizers have in common: precision, training, several processes, settings."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from safetensors.torch import load_file, save_file
from support.tokenizers import make_tokenizer
from torch.nn.parallel import DistributedDataParallel

from worldvq.config.yaml_loading import build
from worldvq.errors import UsageError
from worldvq.models.losses import tokenizer_loss
from worldvq.nn.config import QuantizerConfig
from worldvq.nn.quantizer import FiniteScalarQuantizer, make_quantizer
from worldvq.stages.experiment import ExperimentConfig
from worldvq.training.config import OptimizerConfig
from worldvq.training.optimizers import make_optimizer
from worldvq.types import Clip

VARIANTS = [
    {"kind": "ema"},
    {"kind": "ema", "cosine": True, "gradient": "rotation", "initialize": "kmeans"},
    {"kind": "sgd"},
    {"kind": "sgd", "cosine": True, "gradient": "rotation", "initialize": "kmeans"},
    {"kind": "fsq", "levels": (4, 4)},
]


def small_config(options):
    return QuantizerConfig(**({} if options["kind"] == "fsq" else {"num_codes": 16, "code_dim": 2}), **options)


@pytest.mark.parametrize("options", VARIANTS)
def test_autocast_changes_nothing(options):
    results = []
    for enabled in (False, True):
        torch.manual_seed(0)
        quantizer = make_quantizer(small_config(options)).train()
        z = torch.randn(4, 2, 8, 8) * 1.5 + 0.5
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            outs = [quantizer(z), quantizer(z)]
            tokens = quantizer.nearest(z.permute(0, 2, 3, 1))
            half = quantizer(z.bfloat16())
        assert all(out.z_q.dtype == out.loss.dtype == torch.float32 for out in (*outs, half))
        assert all(value.dtype != torch.bfloat16 for value in quantizer.state_dict().values())
        results.append([*outs[0], *outs[1], tokens, *half, quantizer.codebook])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("options", VARIANTS)
def test_a_tokenizer_learns_with_every_quantizer(options):
    model = make_tokenizer(small_config(options))
    optimizer = make_optimizer(model, OptimizerConfig(learning_rate=3e-3))
    shades = torch.randint(0, 256, (16, 1, 4, 4, 3), dtype=torch.uint8)
    frames = shades.repeat_interleave(4, 2).repeat_interleave(4, 3)
    yes, zeros = torch.ones(16, 1, dtype=torch.bool), torch.zeros(16, 1)
    clip = Clip(frames, zeros.long(), zeros, zeros.bool(), yes, yes)
    errors = []
    for _ in range(60):
        loss, metrics = tokenizer_loss(model, clip)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(loss.detach(), metrics["reconstruction"] + metrics["quantizer_loss"])
        errors.append(float(metrics["reconstruction"]))
    assert errors[-1] < 0.7 * errors[0]
    tokens = model.eval().encode(torch.randn(2, 3, 16, 16))
    assert model.decode(tokens).shape == (2, 3, 16, 16) and int(tokens.max()) < model.num_codes


SHARED = [{"initialize": "kmeans"}, {"kind": "sgd", "initialize": "kmeans"}, {"kind": "sgd", "cosine": True}]


def train_share(options, rank=0, world=1):
    """Train on this process's part of the global batches; returns its state and the last tokens."""
    torch.manual_seed(5)
    quantizer = make_quantizer(QuantizerConfig(num_codes=12, code_dim=3, revive_after=2, **options)).train()
    wrapped, optimizer = quantizer, None
    if list(quantizer.parameters()):
        wrapped = DistributedDataParallel(quantizer, broadcast_buffers=False) if world > 1 else quantizer
        optimizer = torch.optim.AdamW(quantizer.parameters(), lr=0.05)
    for step in range(8):
        data = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(step)).chunk(world)[rank]
        torch.manual_seed(step)
        out = wrapped(data)
        if optimizer:
            out.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return {**quantizer.state_dict(), "tokens": out.tokens}


def train_rank(rank, world, where):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{where}/meet", rank=rank, world_size=world)
    states = [train_share(options, rank, world) for options in SHARED]
    tensors = {f"{index}.{name}": value for index, state in enumerate(states) for name, value in state.items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, f"{where}/{rank}.safetensors")
    dist.barrier()  # nobody leaves while another one reads what it sent
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_hold_the_codebook_of_one(tmp_path):
    """K-means over the global batch, averaged gradients, and 12 codes for 16 vectors: some are revived on the way."""
    multiprocessing.spawn(train_rank, (2, str(tmp_path)), nprocs=2)
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    for index, options in enumerate(SHARED):
        one = train_share(options)
        first, second = ({name: tensors[f"{index}.{name}"] for name in one} for tensors in ranks)
        tokens = [state.pop("tokens") for state in (one, first, second)]
        assert torch.equal(tokens[0], torch.cat(tokens[1:])), options
        for name in one:
            assert torch.equal(first[name], second[name])
            torch.testing.assert_close(one[name], first[name], rtol=1e-4, atol=1e-5)


def test_levels_give_the_sizes_and_survive_a_round_trip():
    config = QuantizerConfig(kind="fsq", levels=(8, 5, 5))
    assert (config.num_codes, config.code_dim) == (200, 3)
    assert QuantizerConfig.model_validate(config.model_dump()) == config
    assert QuantizerConfig.model_validate_json(config.model_dump_json()) == config
    for options in VARIANTS:
        config = small_config(options)
        assert QuantizerConfig.model_validate(config.model_dump(mode="json")) == config
    assert isinstance(make_quantizer(config), FiniteScalarQuantizer)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "fsq", "levels": [8, 8, 8], "code_dim": 32}, "levels (8, 8, 8) make 512 codes of 3 dimensions: set"),
        ({"kind": "fsq"}, "kind fsq needs levels"),
        ({"kind": "fsq", "levels": [8, 2]}, "greater than or equal to 3"),
        ({"kind": "fsq", "levels": [8, "many"]}, "levels"),
        ({"kind": "fsq", "levels": [8], "gradient": "rotation"}, "gradient rotation means nothing to kind fsq"),
        ({"kind": "fsq", "levels": [8], "cosine": True}, "cosine True means nothing to kind fsq"),
        ({"kind": "sgd", "decay": 0.9}, "decay 0.9 means nothing to kind sgd: leave it out, or 0.99"),
        ({"levels": [8, 8]}, "levels (8, 8) means nothing to kind sgd"),
        ({"kind": "lfq"}, "kind"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(options, words):
    with pytest.raises(UsageError) as caught:
        build(ExperimentConfig, {"tokenizer": {"quantizer": options}}, "here")
    assert words in str(caught.value) and "\n" not in str(caught.value)
