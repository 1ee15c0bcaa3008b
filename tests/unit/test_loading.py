"""What a model takes is known before it is built: bounds that hold, and files that are refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from worldvq.errors import CorruptFileError, UsageError
from worldvq.files.weights import save_module
from worldvq.models.config import (
    DynamicsConfig,
    ImagePriorConfig,
    PriorConfig,
    SoundTokenizerConfig,
    TokenizerConfig,
    WaveNetConfig,
)
from worldvq.models.dynamics import Dynamics
from worldvq.models.image_prior import ImagePrior
from worldvq.models.loading import (
    SPARE,
    dynamics_size,
    image_prior_size,
    load_checked,
    sound_prior_size,
    sound_tokenizer_size,
    tokenizer_size,
)
from worldvq.models.sound import SoundTokenizer
from worldvq.models.sound_prior import SoundPrior
from worldvq.models.tokenizer import Tokenizer
from worldvq.nn.config import QuantizerConfig
from worldvq.stages.experiment import load_config
from worldvq.types import ActionSpace

DISCRETE = ActionSpace("discrete", nvec=(7,))
quantizers = st.one_of(
    st.builds(
        QuantizerConfig,
        kind=st.sampled_from(["ema", "sgd"]),
        num_codes=st.integers(1, 5000),
        code_dim=st.integers(1, 500),
    ),
    st.builds(QuantizerConfig, kind=st.just("fsq"), levels=st.lists(st.integers(3, 12), min_size=1, max_size=4)),
)
tokenizers = st.builds(
    TokenizerConfig,
    frame_size=st.just((64, 96)),
    downsample=st.sampled_from([4, 8, 16]),
    architecture=st.sampled_from(["patches", "strided"]),
    width=st.sampled_from([8, 16, 72, 512]),
    encoder_blocks=st.integers(0, 5),
    decoder_blocks=st.integers(0, 5),
    quantizer=quantizers,
)
sizes = {"width": st.sampled_from([8, 40, 256]), "num_blocks": st.integers(1, 5), "num_heads": st.sampled_from([1, 2])}
priors = st.builds(PriorConfig, kind=st.sampled_from(["transformer", "pixelcnn"]), **sizes)
spaces = st.one_of(
    st.builds(
        ActionSpace, st.just("multi_discrete"), nvec=st.lists(st.integers(2, 900), min_size=1, max_size=5).map(tuple)
    ),
    st.integers(1, 900).map(lambda n: ActionSpace("box", low=(0.0,) * n, high=(1.0,) * n)),
)


def elements(make):
    with torch.device("meta"):
        module = make()
    return sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))


@settings(max_examples=60, deadline=None)
@given(tokenizers)
def test_the_bound_of_a_tokenizer_holds(config):
    assert elements(lambda: Tokenizer(config)) <= tokenizer_size(config)


@settings(max_examples=60, deadline=None)
@given(
    st.builds(DynamicsConfig, prior=priors, recall=st.booleans(), merge=st.integers(1, 8), **sizes),
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.integers(1, 5000),
    spaces,
)
def test_the_bound_of_a_dynamics_holds(config, grid, num_codes, space):
    grid = grid[0] * config.merge, grid[1] * config.merge
    made = elements(lambda: Dynamics(config, grid, num_codes, space))
    assert made <= dynamics_size(config, grid, num_codes, space)


@settings(max_examples=60, deadline=None)
@given(
    st.builds(ImagePriorConfig, kind=st.sampled_from(["transformer", "pixelcnn"]), **sizes),
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.integers(1, 5000),
    st.integers(1, 3000),
)
def test_the_bound_of_an_image_prior_holds(config, grid, num_codes, num_classes):
    made = elements(lambda: ImagePrior(config, grid, num_codes, num_classes))
    assert made <= image_prior_size(config, grid, num_codes, num_classes)


sound_sizes = {
    "width": st.integers(1, 300),
    "quantizer": quantizers,
    "decoder": st.builds(
        WaveNetConfig,
        width=st.integers(1, 300),
        skip_width=st.integers(1, 300),
        num_stacks=st.integers(1, 3),
        stack_layers=st.integers(1, 10),
    ),
}


@settings(max_examples=120, deadline=None)
@given(
    st.builds(
        SoundTokenizerConfig,
        features=st.just("mfcc"),
        strides=st.builds(
            lambda first, rest: (first, *rest), st.integers(16, 640), st.lists(st.integers(2, 16), max_size=7)
        ),
        **sound_sizes,
    )
    | st.builds(
        SoundTokenizerConfig,
        strides=(
            st.lists(st.integers(2, 16), min_size=1, max_size=8)
            | st.lists(st.integers(17, 640), min_size=1, max_size=2)
        ).map(tuple),
        **sound_sizes,
    ),
    st.integers(1, 3000),
)
def test_the_bound_of_a_tokenizer_of_sound_holds(config, num_speakers):
    made = elements(lambda: SoundTokenizer(config, num_speakers, 8000))
    assert made <= sound_tokenizer_size(config, num_speakers)
    shape = (config.decoder, config.quantizer.num_codes, num_speakers)
    assert elements(lambda: SoundPrior(*shape)) <= sound_prior_size(*shape)


def builder(make, built):
    def build():
        module = make()
        built.append(next(module.parameters()).device.type)
        return module

    return build


@pytest.mark.parametrize("name", ["tiny", "maze", "doom", "car", "imagenet128"])
def test_models_of_the_usual_size_are_built_once(tmp_path, name):
    """Building on the meta device imports torch's compiler, which takes a second."""
    config = load_config(name)
    shape = (config.tokenizer.grid, config.tokenizer.quantizer.num_codes, DISCRETE)
    for size, make in (
        (tokenizer_size(config.tokenizer), lambda: Tokenizer(config.tokenizer)),
        (dynamics_size(config.dynamics, *shape), lambda: Dynamics(config.dynamics, *shape)),
        (image_prior_size(config.prior, *shape[:2], 5), lambda: ImagePrior(config.prior, *shape[:2], 5)),
        (sound_tokenizer_size(config.sound, 5), lambda: SoundTokenizer(config.sound, 5, 8000)),
    ):
        saved, built = make(), []
        save_module(tmp_path / "file", saved)
        loaded = load_checked(tmp_path / "file", size, builder(make, built))
        assert built == ["cpu"]
        for name, value in saved.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value)


def hungry():
    """Models that take gigabytes, whose weights fit into a small file: their tables are not in it."""
    tokenizer = TokenizerConfig(width=8, quantizer=QuantizerConfig(kind="fsq", levels=(255, 255, 255)))
    prior = PriorConfig(width=4, num_blocks=1, num_heads=1)
    dynamics = DynamicsConfig(width=4, num_blocks=1, num_heads=1, prior=prior)
    shape = ((256, 256), 8, DISCRETE)
    return {
        "codes": (tokenizer_size(tokenizer), lambda: Tokenizer(tokenizer)),
        "mask": (dynamics_size(dynamics, *shape), lambda: Dynamics(dynamics, *shape)),
    }


@pytest.mark.parametrize("name", hungry())
def test_tables_that_no_file_holds_are_counted(tmp_path, name):
    size, make = hungry()[name]
    with torch.device("meta"):
        layout = make().state_dict()
    file, built = tmp_path / "file.safetensors", []
    save_file({key: torch.zeros(value.shape, dtype=value.dtype) for key, value in layout.items()}, file)
    assert file.stat().st_size < SPARE
    with pytest.raises(CorruptFileError, match=r"file\.safetensors is of a model that takes [\d,]+ bytes") as caught:
        load_checked(file, size, builder(make, built))
    assert built == ["meta"] and "\n" not in str(caught.value)


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(UsageError, match=r"no such file: .*gone"):
        load_checked(tmp_path / "gone", 1, lambda: torch.nn.Linear(1, 1))
