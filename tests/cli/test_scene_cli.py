"""``worldvq scene``: its four verbs on a tiny dataset, and every mistake in one line that leaves nothing behind."""

import hashlib
import re

import numpy as np
import pytest
import torch
from PIL import Image
from support.command_line import check_error, run, succeed
from support.episodes import write
from support.tokenizers import make_tokenizer

from worldvq.models.loading import save_tokenizer
from worldvq.models.tokenizer import Tokenizer
from worldvq.stages.tokens import tokenize
from worldvq.types import ActionSpace, Episode
from worldvq.world.scenes import Scenes

SIZES = ["scene.width=8", "scene.quantizer.num_codes=8", "scene.quantizer.code_dim=4", "scene.prior.width=8"]
SHORT = ["--config", "tiny", "--device", "cpu", *SIZES, "scene_training.batch_size=8", "scene_training.log_every=2"]
TRAIN = ["scene", "train", "--tokens", "tokens", "--tokenizer", "tokenizer"]


def episode(number):
    """Noise of a colour: frames that differ, and whose tokens do."""
    rng = np.random.default_rng(number)
    frames = rng.integers(0, 256, (8, 1, 1, 3)) // 2 + rng.integers(0, 128, (8, 16, 16, 3))
    steps = np.zeros(7, np.int64)
    return Episode(frames.astype(np.uint8), steps, steps.astype(np.float32), terminated=False, truncated=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A dataset, a tokenizer and its tokens; other ones; a scene model and one without codes."""
    root = tmp_path_factory.mktemp("root")
    for name, number in (("data", 6), ("unsplit", 1)):
        write(root / name, ActionSpace("discrete", nvec=(3,)), map(episode, range(number)))
    save_tokenizer(root / "tokenizer", make_tokenizer())
    torch.manual_seed(5)
    save_tokenizer(root / "other", Tokenizer(make_tokenizer().config))
    for name in ("tokenizer", "other"):
        tokenize(root / name, root / "data", root / ("tokens" if name == "tokenizer" else "foreign"), "cpu").close()
    store = ["--tokens", root / "tokens", "--tokenizer", root / "tokenizer"]
    said = succeed("scene", "train", *store, "--out", root / "scene", "--steps", 4, *SHORT)
    assert "scene codes, 9 bits a frame of 16 tokens: device cpu" in said and str(root / "scene") in said
    succeed("scene", "train", *store, "--out", root / "blind", "--steps", 2, *SHORT, "scene.num_codes_per_frame=0")
    return root


def picture(path):
    with Image.open(path) as image:
        assert image.format == "PNG" and np.asarray(image).std() > 1
        return image.size


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_folder_needs_nothing_else_and_training_again_changes_nothing(here):
    codes = Scenes.load(here / "scene", "cpu").encode(torch.zeros(1, 4, 4, dtype=torch.int64))
    assert codes.shape == (1, 3)
    assert (here / "scene" / "pictures" / "00000004.png").is_file()
    before = digest(here / "scene" / "scene.safetensors")
    succeed(*TRAIN, "--out", "scene", "--steps", 4, *SHORT)
    assert digest(here / "scene" / "scene.safetensors") == before


@pytest.mark.parametrize("source", [["--data", "data"], ["--tokens", "tokens"]])
def test_reconstruct_says_what_the_codes_are_worth(here, source):
    line = ["scene", "reconstruct", "--scene", "scene", *source, "--count", 3, "--without", "blind"]
    said = succeed(*line, "--out", "a.png")
    assert "24 held-out frames: 9 bits a frame in 3 codes, 16 tokens a frame" in said
    entropies = [float(bits) for bits in re.search(r"entropy of each code: (.*) of 3 bits", said)[1].split(", ")]
    assert len(entropies) == 3 and all(0 <= bits <= 3 for bits in entropies)
    assert re.search(r"nats/token: \d\.\d+; given the codes alone: \d\.\d+; with another frame's codes: \d", said)
    assert re.search(r"nats/token without codes: \d\.\d+; with them -?\d+\.\d % lower", said)
    assert re.search(r"16 tokens drawn in \d+\.\d passes, \d+ % of the positions\na\.png\n", said)
    assert ("PSNR" in said) == (source[0] == "--data")
    width, height = picture(here / "a.png")
    assert height > (4 if source[0] == "--data" else 3) * 128 and width > 3 * 128
    succeed(*line, "--out", "b.png")
    assert digest(here / "a.png") == digest(here / "b.png")
    succeed(*line, "--out", "c.png", "--seed", 1)
    assert digest(here / "a.png") != digest(here / "c.png")


def test_sample_draws_given_codes_and_codes_of_frames(here):
    line = ["scene", "sample", "--scene", "scene", "--count", 2]
    succeed(*line, "--codes", "1,2,3", "--out", "given.png")
    succeed(*line, "--codes", " 1, 2,3", "--out", "again.png")
    succeed(*line, "--codes", "3,2,1", "--out", "other.png")
    assert digest(here / "given.png") == digest(here / "again.png") != digest(here / "other.png")
    succeed(*line, "--codes", "1,2,3", "--tokens", "tokens", "--out", "beside.png")
    succeed(*line, "--rows", 3, "--data", "data", "--out", "rows.png")
    widths = [picture(here / name)[0] for name in ("given.png", "beside.png", "rows.png")]
    assert widths == sorted(set(widths))  # two draws; two nearest beside them; and the frames whose codes they are
    succeed("scene", "sample", "--scene", "blind", "--tokens", "tokens", "--out", "blind.png", "--rows", 1)


def test_edit_swaps_codes_between_two_frames(here):
    line = ["scene", "edit", "--scene", "scene", "--tokens", "tokens"]
    said = succeed(*line, "--first", "0:3", "--second", "1:7", "--out", "a.png")
    scenes = Scenes.load(here / "scene", "cpu")
    assert re.search(r"frame 0:3: codes \d \d \d\nframe 1:7: codes \d \d \d\n", said)
    assert scenes.num_codes_per_frame == 3 and picture(here / "a.png")[0] > 7 * 128
    succeed(*line, "--out", "b.png", "--temperature", 0)


SCENE = "--scene scene --out new.png"
MISTAKES = [
    (f"reconstruct {SCENE}", ["--data", "--tokens", "not both"]),
    (f"reconstruct {SCENE} --data data --tokens tokens", ["not both"]),
    (f"reconstruct {SCENE} --tokens foreign", ["tokenizer_hash", "made by another tokenizer", "--data"]),
    (f"reconstruct {SCENE} --tokens tokens --without scene", ["num_codes_per_frame: scene has 3", "needs 0"]),
    (f"reconstruct {SCENE} --data unsplit", ["unsplit has no held-out episodes"]),
    ("reconstruct --scene data --data data --out new.png", ["no trained scene model in data", "worldvq scene train"]),
    ("sample --scene scene --codes 1,2,3 --out new", ["--out new", "ends in .png"]),
    (f"sample {SCENE}", ["give --data, a dataset, or --tokens"]),
    (f"sample {SCENE} --codes 1,2", ["codes 1,2", "3 a frame, each from 0 to 7"]),
    (f"sample {SCENE} --codes 1,2,8", ["codes 1,2,8", "from 0 to 7"]),
    (f"sample {SCENE} --codes 1,two,3", ["--codes 1,two,3", "12,400,7"]),
    (f"sample {SCENE} --codes 1,,3", ["--codes 1,,3"]),
    (f"edit {SCENE} --tokens tokens --first 3", ["frame 3", "12:30"]),
    (f"edit {SCENE} --tokens tokens --first 99:0", ["99"]),
    (f"edit {SCENE} --tokens tokens --second 0:8", ["episode 0 has 8 frames, there is no frame 8"]),
    ("edit --scene blind --tokens tokens --out new.png", ["blind has no codes", "none to swap"]),
    ("train --config tiny --tokens foreign --tokenizer tokenizer --out new", ["foreign was made by another tokenizer"]),
    ("train --config tiny --tokens tokens --tokenizer data --out new", ["no trained tokenizer in data"]),
    ("train --config tiny --tokens tokens --tokenizer tokenizer --out new scene.codes=2", ["scene", "codes"]),
    ("train --config tiny --tokens tokens --tokenizer tokenizer --out scene --steps 9 scene.width=16", ["scene.width"]),
]


@pytest.mark.parametrize(("line", "words"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_nothing(here, line, words):
    before = {path: path.stat().st_mtime_ns for path in (here / "scene").rglob("*") if path.name != ".lock"}
    check_error(run("scene", *line.split(), "--device", "cpu"), 2, words)
    assert not (here / "new").exists() and not (here / "new.png").exists()
    assert {path: path.stat().st_mtime_ns for path in (here / "scene").rglob("*") if path.name != ".lock"} == before
