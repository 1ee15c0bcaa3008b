"""Which parameters Muon trains, which decay and which do not: every one of every model, by name."""

import pytest
from support.tokenizers import make_tokenizer

from worldvq.models.config import DynamicsConfig, SoundTokenizerConfig, WaveNetConfig
from worldvq.models.dynamics import Dynamics
from worldvq.models.sound import SoundTokenizer
from worldvq.models.tokenizer_losses import AdversarialTokenizer
from worldvq.nn.config import QuantizerConfig
from worldvq.training.config import OptimizerConfig
from worldvq.training.optimizers import make_optimizer
from worldvq.types import ActionSpace

CONVOLUTIONS = [
    "encoder.0.1",
    "encoder.1.body.1",
    "encoder.1.body.3",
    "encoder.3",
    "decoder.0",
    "decoder.1.body.1",
    "decoder.1.body.3",
    "decoder.3.0",
]
JUDGE = [f"discriminator.body.{layer}" for layer in ("0.1", "2", "4.1", "6", "8")]
BLOCK = [
    "blocks.0.space.qkv",
    "blocks.0.space.out",
    "blocks.0.time.qkv",
    "blocks.0.time.out",
    "blocks.0.feed_forward.1",
    "blocks.0.feed_forward.3",
]
BLOCK_NORMS = ["blocks.0.space.norm", "blocks.0.time.norm", "blocks.0.feed_forward.0", "norm"]
ENDS = ["forecast", "outcome.0", "salience", "reward", "termination", "prior.from_context", "prior.head.1"]
TABLES = ["position", "embed.weight", "prior.position", "prior.embed.weight"]
PRIORS = {
    "transformer": ["attentions.0.qkv", "attentions.0.out", "feed_forwards.0.1", "feed_forwards.0.3"],
    "pixelcnn": [f"layers.0.{name}" for name in ["vertical", "horizontal", "link", "condition", "out"]],
}
PRIOR_NORMS = ["prior.attentions.0.norm", "prior.feed_forwards.0.0", "prior.head.0"]
SPACES = {
    "discrete": ActionSpace("discrete", (3,)),
    "multi_discrete": ActionSpace("multi_discrete", (3, 2)),
    "box": ActionSpace("box", low=(-1.0, 0.0), high=(1.0, 2.0)),
}
WEIGHT_DECAY = 0.3


def names(layers, *ends):
    return {f"{layer}.{end}" for layer in layers for end in ends}


def assert_grouped(model, hidden, decayed, plain):
    """With Muon as given; with AdamW alone hidden weights decay like the others."""
    assert {name for name, _ in model.named_parameters()} == hidden | decayed | plain
    by_identity = {id(p): name for name, p in model.named_parameters()}
    for kind, expected in (("muon", (hidden, decayed, plain)), ("adamw", (hidden | decayed, plain))):
        groups = make_optimizer(model, OptimizerConfig(kind=kind, weight_decay=WEIGHT_DECAY)).param_groups
        found = [[by_identity[id(p)] for p in group["params"]] for group in groups]
        assert sum(map(len, found)) == len(by_identity)  # none twice
        assert [set(group) for group in found] == list(expected)
        assert [group["weight_decay"] for group in groups] == [WEIGHT_DECAY] * (len(groups) - 1) + [0.0]
        assert ["momentum" in group for group in groups] == [kind == "muon", False, False][-len(groups) :]


@pytest.mark.parametrize("kind", ["ema", "sgd", "fsq"])
@pytest.mark.parametrize("judged", [False, True])
def test_tokenizers(kind, judged):
    sizes = {"levels": (4, 4)} if kind == "fsq" else {"num_codes": 16, "code_dim": 4}
    model = make_tokenizer(QuantizerConfig(kind=kind, **sizes))
    prefix, layers, table = "", CONVOLUTIONS, ["quantizer.table.weight"] if kind == "sgd" else []
    if judged:
        model, prefix = AdversarialTokenizer(model, 0.1), "tokenizer."
        layers = [prefix + layer for layer in CONVOLUTIONS] + JUDGE
    plain = names(layers, "bias") | {prefix + name for name in table}
    assert_grouped(model, names(layers, "weight"), set(), plain)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("prior", PRIORS)
def test_dynamics(prior, space):
    sizes = {"width": 16, "num_blocks": 1, "num_heads": 2}
    model = Dynamics(DynamicsConfig(**sizes, prior={"kind": prior, **sizes}), (4, 4), 16, SPACES[space])
    hidden = names(BLOCK + [f"prior.{layer}" for layer in PRIORS[prior]], "weight")
    decayed, plain = names(ENDS, "weight"), names(ENDS, "bias") | names(BLOCK_NORMS, "weight", "bias") | {*TABLES}
    if prior == "transformer":
        plain |= names(PRIOR_NORMS, "weight", "bias") | {"prior.begin"}
    if space == "box":
        decayed, plain = decayed | {"embed_action.map.weight"}, plain | {"embed_action.map.bias"}
    else:
        plain |= {"embed_action.map.weight"}
    assert_grouped(model, hidden, decayed, plain)


def test_sound():
    decoder = WaveNetConfig(width=8, skip_width=8, num_stacks=1, stack_layers=2)
    sizes = {"strides": (2, 2), "width": 8, "quantizer": QuantizerConfig(num_codes=16, code_dim=4)}
    model = SoundTokenizer(SoundTokenizerConfig(**sizes, decoder=decoder), 3, 8000)
    convolutions = ["encoder.0", "encoder.2", "encoder.4", "neighbours"]
    layers = [f"decoder.layers.{i}.{part}" for i in (0, 1) for part in ("taps", "condition", "out")]
    ends = ["decoder.from_context", "decoder.head.1", "decoder.head.3"]
    tables = {"quantizer.table.weight", "speaker.weight", "decoder.embed.weight", "decoder.position"}
    plain = names([*convolutions, *ends], "bias") | tables
    assert_grouped(model, names([*convolutions, *layers], "weight"), names(ends, "weight"), plain)
