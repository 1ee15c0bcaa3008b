"""The road of a world with sound, in seconds: after it, what is dreamt sounds as the action does."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command_line import check_error, run, succeed
from support.fault_tools import hashes
from support.tone_env import ID, PITCHES, RATE, SAMPLES, pitches

from worldvq.data.clips import heldout_clips, read_clips
from worldvq.data.episodes import EpisodeStore
from worldvq.evaluation.report_files import REPORT
from worldvq.files.reading import read_json
from worldvq.media.videos import decode_sound, decode_times
from worldvq.world.model import WorldModel

SOUND = [
    "sound.strides=[4,4]",
    "sound.decoder.skip_width=32",
    "sound.width=32",
    f"sound_training.crop_samples={SAMPLES}",
]
SOUND += ["sound_training.batch_size=16", "sound_training.steps=250", "dynamics_training.steps=120"]
FAST = ["optimizer.kind=muon", "optimizer.warmup_steps=20", "optimizer.learning_rate=0.01"]
FAST = [f"{stage}_training.{setting}" for stage in ("sound", "dynamics") for setting in FAST]
TINY = ["--config", "tiny", "--device", "cpu", *SOUND, *FAST]
CONTEXT, LENGTH = 3, 12


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    env = [f"env.id={ID}", "env.size=16", "env.audio_key=sound.ear", "env.max_steps=20"]
    recording = ["record.policy=random", "record.workers=1", "record.frames=1000"]
    said = succeed("demo", "--out", root, *TINY, *env, *recording)
    assert f"sound 'sound.ear', 2,000 samples/s in one channel, {SAMPLES} a step" in said
    assert "4 tokens a frame and 6 of sound" in said
    return root


def test_what_is_dreamt_sounds_as_the_action_does(root):
    """By the loudest pitch of every dreamt step; under other actions it is another one."""
    world, store = WorldModel.load(root / "world", "cpu"), EpisodeStore.open(root / "data")
    clip = read_clips(store, heldout_clips(store, 12, LENGTH), LENGTH)
    assert clip.sounds is not None
    tokens, actions = world.tokenize(clip.frames, clip.sounds), clip.actions[:, :-1]
    imagined = world.imagine_tokens(tokens[:, :CONTEXT], actions, seed=1).tokens
    known = clip.sounds[:, 1:CONTEXT].flatten(1)
    heard = world.hear(torch.cat([tokens[:, 1:CONTEXT], imagined], dim=1), known, seed=1)
    steps = heard.reshape(len(heard), -1, SAMPLES)[:, CONTEXT - 1 :]
    taken = actions[:, CONTEXT - 1 :].numpy()
    right = (pitches(steps) == taken).mean()
    shuffled = (pitches(steps) == np.roll(taken, 1, axis=0)).mean()
    assert right >= 0.95 and shuffled < 0.6, (right, shuffled)
    # Where the dream begins nothing jumps further than the steepest tone goes in a sample.
    jumps = np.abs(np.diff(heard.astype(int), axis=1))[:, SAMPLES * (CONTEXT - 1) - 1]
    assert jumps.max() <= 0.5 * 2**15 * 2 * np.pi * max(PITCHES) / RATE * 1.2


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_a_video_is_heard(root, suffix):
    out = root / f"rollout.{suffix}"
    data = ["--world", root / "world", "--data", root / "data", "--device", "cpu"]
    succeed("imagine", *data, "--out", out, "--actions", 2, "--context", 2, "--frames", 10, "--clips", 2)
    shown, heard = decode_times(out).times, decode_sound(out, RATE)
    assert len(shown) == 12 and shown[1] == pytest.approx(SAMPLES / RATE, abs=1e-3)
    assert abs(len(heard) - 12 * SAMPLES) / RATE < 0.03
    loud = pitches(heard[2 * SAMPLES : 10 * SAMPLES].reshape(8, SAMPLES))
    assert (loud == 2).mean() > 0.8


def test_the_report_is_of_what_is_seen(root):
    report = read_json(root / "report" / REPORT, 2**24)
    assert np.shape(report["nats_by_position"]) == (2, 2) and report["codes_used"] <= 64
    assert len(decode_sound(root / "rollout.mp4", RATE)) > 0


def test_stages_alone_find_everything_done(root):
    before = hashes(root / "tokens") | hashes(root / "world")
    made = ["--tokenizer", root / "tokenizer", "--sound", root / "sound"]
    succeed("train", "sound", "--data", root / "data", "--out", root / "sound", *TINY)
    succeed("tokenize", "--data", root / "data", *made, "--out", root / "tokens", "--device", "cpu")
    succeed("train", "dynamics", *made, "--tokens", root / "tokens", "--out", root / "dynamics", *TINY)
    assert hashes(root / "tokens") | hashes(root / "world") == before


def test_the_example_of_the_page_runs(root):
    page = (Path(__file__).resolve().parents[2] / "docs" / "world_with_sound.md").read_text(encoding="utf-8")
    code = (
        page.split("```python\n")[1].split("```")[0].replace("runs/shots", str(root)).replace(", 26)", f", {LENGTH})")
    )
    (root / "example.py").write_text(code, encoding="utf-8")
    names = runpy.run_path(str(root / "example.py"))
    step = names["world"].engine.samples
    assert names["samples"].shape == (4, (LENGTH - 1) * step) and names["frames"].shape == (4, LENGTH - 6, 16, 16, 3)
    np.testing.assert_array_equal(names["samples"][:, : 5 * step], names["given"])


def test_a_mistake_is_one_line(root, monkeypatch):
    monkeypatch.chdir(root)
    for line, words in (
        ("imagine --world world --data data --out x.mp4 --context 2 --frames 2 --fps 6", ["--fps 6", "20.83 frames"]),
        (
            "train dynamics --config tiny --tokens tokens --tokenizer tokenizer --out new",
            ["give its codec with --sound"],
        ),
        (
            "train prior --config tiny --tokens tokens --tokenizer tokenizer --out new",
            ["tokens of sound", "without sound"],
        ),
        ("tokenize --tokenizer tokenizer --data data --out new --sound tokenizer", ["no trained codec of sound"]),
        (
            "train sound --config tiny --data data --out new",
            [f"{SAMPLES} samples of sound a step", "tokens of 64", "48, 96"],
        ),
    ):
        check_error(run(*line.split()), 2, words)
        assert not (root / "new").exists() and not (root / "x.mp4").exists()
