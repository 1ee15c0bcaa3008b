"""What samples are compared with: the nearest training frames, and two halves of what is held out."""

import numpy as np
import pytest
import torch
from support.episodes import SPACES, make_episode, write
from support.tokenizers import make_tokenizer

from worldvq.config.env import EnvConfig
from worldvq.errors import UsageError
from worldvq.evaluation.samples import heldout_frames, nearest_frames
from worldvq.media.sheets import sample_sheet
from worldvq.media.tiles import enlarge
from worldvq.models.config import ImagePriorConfig
from worldvq.models.image_prior import ImagePrior
from worldvq.world.images import ImageModel

SIZE = (16, 16)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("samples"), []
    for number, name in enumerate(("cat", "dog")):
        episodes = [make_episode(10 * number + i, 15, size=SIZE) for i in range(4)]
        made.append(write(root / name, SPACES["discrete"], episodes, env=EnvConfig(id=name, size=SIZE)))
    return made


def model(*classes):
    config = ImagePriorConfig(width=16, num_blocks=1, num_heads=2)
    return ImageModel(make_tokenizer(), ImagePrior(config, (4, 4), 16, len(classes)), classes, {})


def test_the_nearest_training_frame_is_that_of_brute_force(stores):
    known = np.concatenate([store.frames(n) for store in stores for n in store.numbers("train")])
    frames = np.random.default_rng(1).integers(0, 256, (6, *SIZE, 3), np.uint8)
    frames[2], frames[3] = known[40], known[7]
    frames[4] = stores[0].frames(stores[0].numbers("heldout")[0])[3]  # not to be found: it is held out
    found = nearest_frames(stores, torch.from_numpy(frames))
    errors = np.square((frames[:, None].astype(float) - known) / 255).mean((2, 3, 4))  # (6, n)
    np.testing.assert_array_equal(found.frames, known[errors.argmin(1)])
    np.testing.assert_allclose(found.errors, errors.min(1), atol=1e-6)
    assert found.errors[2] == found.errors[3] == 0 and found.errors[4] > 0.01


def test_held_out_halves_share_no_frame_and_know_their_classes(stores):
    of = {name: {store.frames(n)[t].tobytes() for n in store.numbers("heldout") for t in range(16)}
          for name, store in zip(("cat", "dog"), stores, strict=True)}  # fmt: skip
    held = heldout_frames(stores, model("cat", "dog"), [0, 1], 12)
    assert held.frames.shape == (2, 12, *SIZE, 3)
    every = [frame.numpy().tobytes() for frame in held.frames.flatten(0, 1)]
    assert len(set(every)) == 24
    for frame, label in zip(every, held.labels.flatten(), strict=True):
        assert frame in of[("cat", "dog")[label]]
    assert all(0.3 < half.mean() < 0.7 for half in held.labels)  # spread over both
    assert (heldout_frames(stores, model("cat", "dog"), [1], 12).labels == 1).all()
    assert not heldout_frames(stores, model("all"), [0], 12).labels.any()
    assert heldout_frames(stores, model("all"), [0], 10**6).frames.shape[1] == 32  # all that there are


def test_data_that_have_nothing_to_compare_with_are_refused(stores):
    with pytest.raises(UsageError, match="no class 'dog': this prior knows cat, elk"):
        heldout_frames(stores, model("cat", "elk"), [0, 1], 4)
    with pytest.raises(UsageError, match="0 held-out frames of these classes, 4 at least are needed"):
        heldout_frames(stores[:1], model("cat", "dog"), [1], 4)


def test_a_sheet_shows_every_sample_and_its_neighbour():
    rng = np.random.default_rng(0)
    samples, near = ({name: rng.integers(0, 256, (9, 8, 8, 3), np.uint8) for name in "ab"} for _ in range(2))
    for beside in (None, near):
        drawn = sample_sheet(samples, beside, scale=2)
        windows = np.lib.stride_tricks.sliding_window_view(drawn, (16, 16, 3))[:, :, 0].reshape(-1, 16, 16, 3)
        shown = [*samples.values(), *(near.values() if beside else ())]
        places = [
            np.flatnonzero((windows == enlarge(frame, 2)).all((1, 2, 3))).tolist()
            for frames in shown
            for frame in frames
        ]
        assert all(len(found) == 1 for found in places)
        assert places[:18] == sorted(places[:18])  # in order
