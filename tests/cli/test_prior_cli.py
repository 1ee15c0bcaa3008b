"""The road of an image prior through the command line: two datasets, one tokenizer, one prior of two classes."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support.command_line import check_error, run, succeed
from support.episodes import SPACES, make_episode, plain_episode, write

from worldvq.config.env import EnvConfig
from worldvq.world.images import ImageModel
from worldvq.world.model import WorldModel

SMALL = [
    *(
        "--config",
        "tiny",
        "--device",
        "cpu",
        "tokenizer={width: 8, downsample: 4, quantizer: {num_codes: 16, code_dim: 4}}",
    ),
    "prior={width: 16, num_blocks: 1, num_heads: 2}",
]
DARK, LIGHT = "Dark-v0", "Light-v0"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two worlds of one shade of grey, whose actions have nothing in common; the tokenizer of both, and a prior."""
    root = tmp_path_factory.mktemp("prior")
    write(
        root / "dark",
        SPACES["discrete"],
        [plain_episode(20 + n, 16) for n in range(4)],
        env=EnvConfig(id=DARK, size=(16, 16)),
    )
    box = [make_episode(n, 11, "box", (16, 16)) for n in range(4)]
    write(root / "light", SPACES["box"], box, env=EnvConfig(id=LIGHT, size=(16, 16)))
    both = ["--data", root / "dark", "--data", root / "light"]
    text = succeed("train", "tokenizer", *SMALL, *both, "--out", root / "tokenizer", "--steps", 4)
    assert text.endswith(f"tokenizer: {root / 'tokenizer'}\n")
    for name in ("dark", "light"):
        made = ["--tokenizer", root / "tokenizer", "--data", root / name, "--out", root / f"{name}_tokens"]
        succeed("tokenize", *made, "--device", "cpu")
    text = train(root, root / "out", 6)
    assert "image prior, 16 tokens a frame, 2 classes: device cpu" in text and text.endswith(f"prior: {root / 'out'}\n")
    return root


def train(root, out, steps, *more, how=succeed, tokens=("dark_tokens", "light_tokens")):
    given = [word for name in tokens for word in ("--tokens", root / name)]
    rest = ["--tokenizer", root / "tokenizer", "--out", out, "--steps", steps, "--seed", 3]
    return how("train", "prior", *SMALL, *given, *rest, *more)


def test_a_run_says_what_it_was_trained_on(root):
    rows = [json.loads(line) for line in (root / "out" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 6 and {"nats_per_token", "heldout_nats_per_token", "forecast"} <= rows[-1].keys()
    config = yaml.safe_load((root / "out" / "config.yaml").read_text())
    assert set(config) == {"prior", "prior_training"} and config["prior_training"]["seed"] == 3
    inputs = json.loads((root / "out" / "inputs.json").read_text())
    assert inputs["classes"] == [DARK, LIGHT] and len(inputs["tokens"]) == 2
    tokenizer = json.loads((root / "tokenizer" / "inputs.json").read_text())
    assert [env["id"] for env in tokenizer["env"]] == [DARK, LIGHT] and len(tokenizer["data"]) == 2
    with Image.open(root / "out" / "pictures" / "00000006.png") as sheet:
        assert sheet.size == (8 * 38 + 6, 2 * 38 + 6)  # a row a class
    model = ImageModel.load(root / "out", "cpu")
    assert model.classes == (DARK, LIGHT) and model.meta["env_ids"] == [DARK, LIGHT]


def test_samples_are_drawn_a_row_a_class_and_the_same_again(root, tmp_path):
    given = ["--prior", root / "out", "--device", "cpu", "--per-class", 3]
    text = succeed("sample", *given, "--out", tmp_path / "a.png")
    assert text.startswith(f"{tmp_path / 'a.png'}\n") and "passes a grid of 16 tokens (predictive)" in text
    succeed("sample", *given, "--out", tmp_path / "b.png", "--method", "sequential")
    succeed("sample", *given, "--out", tmp_path / "c.png", "--seed", 1)
    a, b, c = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert a.shape == c.shape and (a != c).any()
    some = ["--label", LIGHT, "--temperature", 0.7, "--top-k", 4, "--top-p", 0.9, "--scale", 1]
    succeed("sample", *given, "--out", tmp_path / "d.png", *some)
    assert np.asarray(Image.open(tmp_path / "d.png")).shape[0] < a.shape[0] / 2


def test_samples_stand_beside_the_data(root, tmp_path):
    given = ["--prior", root / "out", "--device", "cpu", "--per-class", 2, "--out", tmp_path / "a.png"]
    data = ["--data", root / "dark", "--data", root / "light"]
    text = succeed("sample", *given, *data, "--fd", 4, "--top-k", 3)
    assert "PSNR to the nearest training frame, median in dB: samples " in text and ", reconstructions " in text
    assert "FD-EffLite0 to 4 held-out frames, of as many: samples " in text and ", held-out frames " in text
    assert (tmp_path / "a.png").is_file()


def test_a_prior_of_one_class_and_one_that_is_not_told(root, tmp_path):
    assert "tokens a frame, one class" in train(root, tmp_path / "one", 1, tokens=["dark_tokens"])
    assert "tokens a frame, one class" in train(root, tmp_path / "two", 1, "prior.classes=false")
    assert ImageModel.load(tmp_path / "one", "cpu").classes == (DARK,)
    assert ImageModel.load(tmp_path / "two", "cpu").classes == ("all",)
    text = succeed("sample", "--prior", tmp_path / "two", "--out", tmp_path / "a.png", "--data", root / "light")
    assert "nearest training frame" in text


def test_runs_start_from_a_prior(root, tmp_path):
    still = ["prior_training.optimizer={learning_rate: 1e-30, weight_decay: 0}"]
    train(root, tmp_path / "again", 1, *still, "--from", root / "out")
    old, new = (ImageModel.load(folder, "cpu").prior.state_dict() for folder in (root / "out", tmp_path / "again"))
    assert all(torch.equal(old[name], new[name]) for name in old)
    prior = "{width: 16, num_blocks: 1, num_heads: 2}"
    made = ["--tokens", root / "dark_tokens", "--tokenizer", root / "tokenizer", "--from", root / "out", "--steps", 1]
    still = ["dynamics_training.optimizer={learning_rate: 1e-30, weight_decay: 0}"]
    dynamics = ["train", "dynamics", *SMALL, *made, *still]
    succeed(*dynamics, "--out", tmp_path / "dynamics", f"dynamics.prior={prior}")
    world = WorldModel.load(tmp_path / "world", "cpu").dynamics.state_dict()
    assert {name for name in old if name in world and torch.equal(old[name], world[name])} >= {
        *("prior.embed.weight", "prior.attentions.0.qkv.weight", "prior.head.1.weight", "prior.position")
    }
    assert world["prior.from_context.weight"].shape == (16, 32)  # of the dynamics: there is a past and an action
    result = run(*dynamics, "--out", tmp_path / "other", "dynamics.prior={width: 32, num_blocks: 1, num_heads: 2}")
    check_error(result, 1, ["does not fit this model", "prior.embed.weight: the file has [16, 16]", "[16, 32]"])
    assert not (tmp_path / "other").exists()


def test_a_run_of_something_else_is_refused(root):
    for more, words in (
        (["prior.width=32"], ["holds a prior model trained with another config", "prior.width: that run had 16"]),
        ([], ["trained on something else", "classes: that run had"]),
    ):
        tokens = ("dark_tokens", "light_tokens") if more else ("dark_tokens",)
        check_error(train(root, root / "out", 6, *more, how=run, tokens=tokens), 2, words)


def test_mistakes_are_one_line(root, tmp_path):
    write(
        tmp_path / "large", SPACES["discrete"], [plain_episode(n, 32) for n in range(4)], env=EnvConfig(size=(32, 32))
    )
    sizes = run(
        "train", "tokenizer", *SMALL, "--data", root / "dark", "--data", tmp_path / "large", "--out", tmp_path / "t"
    )
    check_error(sizes, 2, ["one tokenizer takes frames of one size", f"{tmp_path / 'large'} has 32x32", "has 16x16"])
    small = [*SMALL[:-2], "tokenizer={width: 16, downsample: 4, quantizer: {num_codes: 16, code_dim: 4}}"]
    succeed("train", "tokenizer", *small, "--data", root / "dark", "--out", tmp_path / "other", "--steps", 1)
    made = ["--tokenizer", tmp_path / "other", "--data", root / "dark", "--out", tmp_path / "tokens"]
    succeed("tokenize", *made, "--device", "cpu")
    result = run(
        *("train", "prior", *SMALL, "--tokens", root / "light_tokens", "--tokens", tmp_path / "tokens"),
        *("--tokenizer", root / "tokenizer", "--out", tmp_path / "new"),
    )
    check_error(result, 2, [f"{tmp_path / 'tokens'} was made by another tokenizer", "tokenizer_hash: the tokens have"])
    sample = ["sample", "--prior", root / "out", "--device", "cpu"]
    for wrong, words in (
        (["--label", "Drak-v0"], ["no class 'Drak-v0' (did you mean 'Dark-v0'?)", "knows Dark-v0, Light-v0"]),
        (["--fd", 8], ["--fd 8", "give --data"]),
        (["--out", tmp_path / "a.gif"], ["a.gif", ".png"]),
        (["--data", tmp_path / "large"], ["frame_size:", "has 32x32, the prior draws 16x16"]),
        (["--data", root / "dark", "--label", LIGHT], ["0 held-out frames of these classes"]),
        (["--method", "best"], ["sampling: method"]),
        (["--prior", root / "tokenizer"], ["no image prior in", "worldvq train prior"]),
    ):
        given = [*sample, *([] if "--out" in wrong else ["--out", tmp_path / "a.png"]), *wrong]
        check_error(run(*given), 2, words)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == ["large", "other", "tokens"]
