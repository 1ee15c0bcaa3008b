"""A folder of images walks the road: import, the paper's own tokenizer, tokens, reconstructions; films it is not."""

import re
import runpy

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import entropy
from skimage.metrics import peak_signal_noise_ratio
from support.command_line import check_error, run, succeed
from support.programs import ROOT

from worldvq.data.episodes import EpisodeStore
from worldvq.data.tokens import TokenStore
from worldvq.errors import UsageError
from worldvq.evaluation.protocol import check_fits
from worldvq.models.loading import load_tokenizer
from worldvq.types import frames_from_model, frames_to_model

SMALL = ["tokenizer.width=16", "tokenizer.quantizer.num_codes=32", "tokenizer.quantizer.code_dim=8"]
SMALL += ["tokenizer_training.batch_size=4", "tokenizer_training.log_every=2", "tokenizer_training.precision=no"]
MOTION = "train tokenizer --config tiny tokenizer_loss.motion=1 tokenizer_training.clip_frames=2"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """What ``configs/imagenet128.yaml`` makes of a user's folder, smaller and for a few steps."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for label, count in (("n01440764", 12), ("n01443537", 12)):
        (root / "train" / label).mkdir(parents=True)
        for index in range(count):
            picture = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)).resize((70, 50 + index))
            picture.save(root / "train" / label / f"{label}_{index}.JPEG")
    (root / "train" / "n01440764" / "broken.JPEG").write_bytes(b"\xff\xd8\xff\xe0")
    said = succeed("data", "import", "images", root / "train", "--out", root / "data", "--heldout-every", 4)
    assert "25 images of 2 classes" in said and "left out: n01440764/broken.JPEG: not a whole image" in said
    assert re.search(r"data: 8 episodes, 24 images, \d+ held out\n", said)
    train = ["--config", "imagenet128", "--data", root / "data", "--out", root / "tokenizer", "--steps", 4, *SMALL]
    assert "1024 tokens a frame of 32 codes" in succeed("train", "tokenizer", *train)
    tokens = ["--tokenizer", root / "tokenizer", "--data", root / "data", "--out", root / "tokens"]
    succeed("tokenize", *tokens)
    return root


def test_tokens_know_the_classes(here):
    with TokenStore.open(here / "tokens") as tokens:
        assert tokens.item_shape == (32, 32)
        assert {tokens.label(number) for number in tokens.numbers()} == {"n01440764", "n01443537"}


def test_info_names_the_classes(here):
    assert "n01440764, n01443537" in succeed("data", "info", "data")


def test_originals_stand_above_reconstructions(here):
    said = succeed("reconstruct", "--tokenizer", "tokenizer", "--data", "data", "--out", "out.png", "--frames", 3)
    with EpisodeStore.open("data") as store:
        frames = np.concatenate([store.frames(number) for number in store.numbers("heldout")])
    model = load_tokenizer(here / "tokenizer")
    with torch.no_grad():
        tokens = model.encode(frames_to_model(torch.from_numpy(frames)))
        rebuilt = frames_from_model(model.decode(tokens)).numpy()
    shown = {key: float(value) for key, value in re.findall(r"(PSNR|SSIM) ([\d.]+)", said)}
    assert f"{len(frames)} held-out frames: " in said
    assert shown["PSNR"] == pytest.approx(peak_signal_noise_ratio(frames, rebuilt), abs=0.006)
    assert -1 <= shown["SSIM"] < 1
    codes = entropy(np.bincount(tokens.flatten()), base=2)
    assert f"bits a frame: {1024 * 5:,} in 1,024 tokens, 1/{128 * 128 * 24 / (1024 * 5):.0f} of its pixels" in said
    assert f"{codes:.2f} a token" in said and f"{round(1024 * codes):,} by the entropy" in said
    picture = np.asarray(Image.open("out.png"))
    # Some original stands in it pixel by pixel, and below it what came back.
    for original, back in zip(frames, rebuilt, strict=True):
        rows, columns = np.where((picture[:-127, :-127] == original[0, 0]).all(-1))
        for top, left in zip(rows.tolist(), columns.tolist(), strict=True):
            if np.array_equal(picture[top : top + 128, left : left + 128], original):
                below = picture[top + 128 + 4 :, left : left + 128][:128]
                assert np.abs(below.astype(int) - back).max() <= 1
                return
    raise AssertionError("no held-out frame is in the picture")


def test_the_same_seed_draws_the_same_picture(here):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        options = ["--out", f"{name}.png", "--frames", 2, "--seed", seed]
        succeed("reconstruct", "--tokenizer", "tokenizer", "--data", "data", *options)
    pictures = {name: (here / f"{name}.png").read_bytes() for name in "abc"}
    assert pictures["a"] == pictures["b"] != pictures["c"]


def test_a_run_continues(here):
    train = ["--config", "imagenet128", "--data", "data", *SMALL]
    succeed("train", "tokenizer", *train, "--out", "whole", "--steps", 3)
    succeed("train", "tokenizer", *train, "--out", "parts", "--steps", 2)
    succeed("train", "tokenizer", *train, "--out", "parts", "--steps", 3)  # the rate of this config does not fall
    whole, parts = (load_tokenizer(here / name).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("train dynamics --config tiny --tokens tokens --tokenizer tokenizer --out x", 2, ["images:train", "follow"]),
        (f"{MOTION} --data data --out x", 2, ["images:train", "follow each other"]),
        (
            "record --config imagenet128 --out x",
            2,
            ["'images:train' are images, which nobody can play", "import images"],
        ),
        ("data import images nowhere --out x", 2, ["no such folder of images: nowhere"]),
        ("data import images train --out x --fit zoom", 2, ["--fit zoom", "crop"]),
        ("data import images train --out x --compression gzip", 2, ["--compression gzip: none or zstd"]),
        ("data import images train --out x --size 70", 2, ["--size 70", "divide by 4"]),
        ("data import images train --out tokens", 2, ["holds other files"]),
        ("data import images train --out data --heldout-every 3", 2, ["--heldout-every", "another folder"]),
        ("reconstruct --tokenizer data --data data --out x.png", 2, ["no trained tokenizer in data"]),
        ("reconstruct --tokenizer tokenizer --data data --out x.jpg", 2, ["--out x.jpg", ".png"]),
        ("reconstruct --tokenizer tokenizer --data tokens --out x.png", 2, ["holds no dataset"]),
    ],
)
def test_mistakes_are_one_line(here, arguments, code, words):
    check_error(run(*arguments.split()), code, words)
    assert not (here / "x").exists() and not (here / "x.png").exists()


def test_what_imagines_and_evaluates_refuses_images(here):
    """`imagine`, `evaluate`, `act` and `play` ask this before they look at the world."""
    with (
        EpisodeStore.open("data") as store,
        pytest.raises(UsageError, match=r"data holds single images .* take recorded"),
    ):
        check_fits(None, store)


def test_a_dataset_that_holds_nothing_out(here):
    succeed("data", "import", "images", "train/n01443537", "--out", "few", "--heldout-every", 50)
    check_error(
        run("reconstruct", "--tokenizer", "tokenizer", "--data", "few", "--out", "x.png"), 2, ["no held-out episodes"]
    )


def test_frames_of_another_size(here):
    succeed("data", "import", "images", "train", "--out", "small", "--size", "64")
    arguments = ["--tokenizer", "tokenizer", "--data", "small", "--out", "x.png"]
    check_error(run("reconstruct", *arguments), 2, ["frame_size: the dataset has 64x64, the tokenizer expects 128x128"])


def test_samples_to_train_on_and_held_out_share_no_pixel(tmp_path):
    tool = runpy.run_path(str(ROOT / "tools/sample_images.py"))
    tool["main"](tmp_path, size=128, stride=200)
    whole = tool["pictures"]()
    assert {path.name for path in (tmp_path / "train").iterdir()} == set(whole)
    for name, picture in whole.items():
        seen = {}
        for part in ("train", "heldout"):
            covered = np.zeros(picture.shape[:2], bool)
            files = sorted((tmp_path / part / name).iterdir())
            for file in files:
                top, left, *mirrored = file.stem.split("_")
                region = np.s_[int(top) : int(top) + 128, int(left) : int(left) + 128]
                crop = np.asarray(Image.open(file))
                np.testing.assert_array_equal(crop[:, ::-1] if mirrored else crop, picture[region])
                covered[region] = True
            assert files and covered.any()
            seen[part] = covered
        assert not (seen["train"] & seen["heldout"]).any()
