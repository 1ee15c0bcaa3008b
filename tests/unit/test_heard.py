"""Worlds with sound: what is seen stays what it was, what is heard comes back, and it goes on without a jump."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from support.episodes import make_episode, make_meta
from support.heard import CODES, RATE, SAMPLES, TOKENS, make_codec, make_heard_world, make_sounds, write_store
from support.tone_env import pitches
from support.worlds import HEIGHT, WIDTH, make_actions, make_frames, make_world

from worldvq.config.env import SoundFormat
from worldvq.data.clips import read_clips
from worldvq.data.episodes import EpisodeStore
from worldvq.data.tokens import TokenStore
from worldvq.errors import CorruptFileError, UsageError
from worldvq.files.reading import read_sealed, seal
from worldvq.models.loading import save_tokenizer
from worldvq.nn.mulaw import compress, expand
from worldvq.planning.costs import CostModel
from worldvq.planning.rollout import code_distance, forecast_plans
from worldvq.stages.tokens import open_tokens, tokenize
from worldvq.types import TokenClip, samples_from_model, samples_to_model
from worldvq.world.model import WorldModel


@pytest.fixture(scope="module")
def world() -> WorldModel:
    return make_heard_world()


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> EpisodeStore:
    return write_store(tmp_path_factory.mktemp("heard") / "data", 9)


def test_a_clip_has_the_sound_that_led_to_each_frame(store):
    episode = store.read(1)
    assert episode.sounds is not None
    clip = read_clips(store, np.array([[1, 0], [1, 4], [1, 8]]), 4)
    assert clip.sounds is not None and clip.sounds.shape == (3, 4, SAMPLES)
    assert not clip.sounds[0, 0].any() and not clip.sounds[2, 2:].any()
    np.testing.assert_array_equal(clip.sounds[0, 1:], episode.sounds[:3])
    np.testing.assert_array_equal(clip.sounds[1], episode.sounds[3:7])
    np.testing.assert_array_equal(clip.sounds[2, :2], episode.sounds[7:9])
    assert clip.to("cpu").sounds is not None


def test_tokens_of_a_store_are_those_of_its_clips(world, store, tmp_path):
    assert world.codec is not None
    save_tokenizer(tmp_path / "tokenizer", world.tokenizer)
    world.codec.save(tmp_path / "sound")
    tokens = tokenize(tmp_path / "tokenizer", store.path, tmp_path / "tokens", "cpu", tmp_path / "sound")
    assert tokens.meta.grid == world.dynamics.grid and tokens.meta.num_codes == world.dynamics.num_codes
    clip = read_clips(store, np.array([[0, 0], [1, 3]]), 5)
    found = world.tokenize(clip.frames, clip.sounds)
    assert torch.equal(found, read_clips(tokens, np.array([[0, 0], [1, 3]]), 5).tokens)
    layout = world.dynamics.layout
    assert clip.sounds is not None
    assert torch.equal(layout.heard(found[1, 2]), world.codec.encode(clip.sounds[1, 2:3])[0])
    silent = tokenize(tmp_path / "tokenizer", store.path, tmp_path / "silent", "cpu")
    assert "sound" not in read_sealed(silent.path / "tokens.json") and "codec" not in str(silent.meta.model_dump())
    assert torch.equal(layout.seen(found), read_clips(silent, np.array([[0, 0], [1, 3]]), 5).tokens)
    assert torch.equal(world.render(found), make_frames_of(world, layout.seen(found)))

    with pytest.raises(UsageError, match=r"holds the tokens of sound: give its codec with --sound"):
        open_tokens(tokens.path, tmp_path / "tokenizer", world.tokenizer)
    with pytest.raises(UsageError, match=r"codec_hash: the tokens have nothing"):
        open_tokens(silent.path, tmp_path / "tokenizer", world.tokenizer, world.codec)
    with pytest.raises(UsageError, match=r"codec_hash: the tokens have"):
        open_tokens(tokens.path, tmp_path / "tokenizer", world.tokenizer, other_codec())
    assert open_tokens(tokens.path, tmp_path / "tokenizer", world.tokenizer, world.codec)[1]["codec_hash"]


def make_frames_of(world: WorldModel, seen: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        decoded = world.tokenizer.decode(seen.flatten(0, 1)).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return decoded.movedim(1, -1).unflatten(0, seen.shape[:2])


def other_codec():
    codec = make_codec()
    with torch.no_grad():
        codec.tokenizer.speaker.weight += 1
    return codec


@pytest.mark.parametrize(
    ("sound", "samples", "words"),
    [
        (None, None, "was recorded without sound: leave --sound out, or record with env.audio_key"),
        (SoundFormat(rate=RATE + 1, samples=8), 8, "rate: the dataset has 401, the codec expects 400"),
        (SoundFormat(rate=RATE, samples=12), 12, "12 samples of sound a step.*tokens of 8: .*one of 2, 3, 4, 6, 12"),
    ],
)
def test_sound_that_does_not_fit_is_refused_before_anything_is_written(world, tmp_path, sound, samples, words):
    with EpisodeStore.create(tmp_path / "data", make_meta(size=(HEIGHT, WIDTH), sound=sound)) as store:
        store.commit(0, make_episode(0, 4, size=(HEIGHT, WIDTH), samples=samples))
    save_tokenizer(tmp_path / "tokenizer", world.tokenizer)
    make_codec().save(tmp_path / "sound")
    with pytest.raises(UsageError, match=words):
        tokenize(tmp_path / "tokenizer", tmp_path / "data", tmp_path / "out", "cpu", tmp_path / "sound")
    assert not (tmp_path / "out").exists()


def test_what_is_not_heard_is_silence_and_a_silent_world_does_not_listen(world):
    frames, silence = make_frames(2, 3), torch.zeros(2, 3, SAMPLES, dtype=torch.int16)
    assert torch.equal(world.tokenize(frames), world.tokenize(frames, silence))
    silent = make_world()
    assert torch.equal(silent.tokenize(frames, silence), silent.tokenize(frames))
    with pytest.raises(UsageError, match=rf"sounds are int16\[2, 3, 5\], this world takes int16 \[2, 3, {SAMPLES}\]"):
        world.tokenize(frames, silence[..., :5])
    with pytest.raises(UsageError, match="has no sound"):
        silent.hear(silent.tokenize(frames))
    assert world.sound_format == SoundFormat(rate=RATE, samples=SAMPLES) and silent.sound_format is None


def test_a_world_is_saved_with_its_codec(world, tmp_path):
    world.save(tmp_path / "world")
    loaded = WorldModel.load(tmp_path / "world", "cpu")
    assert loaded.hash() == world.hash() and loaded.description() == world.description()
    frames, actions, sounds = make_frames(2, 3), make_actions("discrete", 2, 6), make_sounds(2, 3)
    tokens = world.tokenize(frames, sounds)
    dreamt = world.imagine_tokens(tokens, actions, seed=2).tokens
    assert torch.equal(loaded.imagine_tokens(loaded.tokenize(frames, sounds), actions, seed=2).tokens, dreamt)
    np.testing.assert_array_equal(loaded.hear(dreamt, seed=1), world.hear(dreamt, seed=1))
    assert world.start(frames, actions[:, :2]).step(actions[:, 2]).shape == frames[:, 0].shape
    assert read_sealed(tmp_path / "world" / "world.json")["format_version"] == 4
    make_world().save(tmp_path / "silent")
    assert read_sealed(tmp_path / "silent" / "world.json")["format_version"] == 3
    assert "sound.json" not in {file.name for file in (tmp_path / "silent").iterdir()}

    described = read_sealed(tmp_path / "world" / "world.json")
    (tmp_path / "world" / "world.json").write_bytes(seal(described | {"sound_tokens": 10**6}))
    with pytest.raises(CorruptFileError, match="sound_tokens 1000000"):
        WorldModel.load(tmp_path / "world", "cpu")
    (tmp_path / "world" / "world.json").write_bytes(seal(described))
    other_codec().save(tmp_path / "world")
    with pytest.raises(CorruptFileError, match="codec of sound in it is not the one"):
        WorldModel.load(tmp_path / "world", "cpu")
    with pytest.raises(UsageError, match="codec and dynamics do not fit together: sound_codes: the codec has nothing"):
        WorldModel(world.tokenizer, world.dynamics, {})


@torch.no_grad()
def test_what_is_drawn_goes_on_from_what_is_known(world):
    """Against a loop that runs the whole decoder for every sample."""
    assert world.codec is not None
    sounds = make_sounds(2, 3)
    tokens = world.tokenize(make_frames(2, 3), sounds)
    known = sounds[:, :2].flatten(1)[:, :50]
    drawn = world.hear(tokens, known, temperature=0.0)
    assert drawn.shape == (2, 3 * SAMPLES) and drawn.dtype == np.int16
    np.testing.assert_array_equal(drawn[:, :50], known)
    model = world.codec.tokenizer
    codes = world.dynamics.layout.heard(tokens).flatten(1)
    context = model.context(model.quantizer.lookup(codes[:, None]), torch.zeros(2, dtype=torch.int64))
    classes = torch.zeros(2, 1, 3 * SAMPLES, dtype=torch.int64)
    classes[:, 0, :50] = compress(samples_to_model(known))
    for place in range(50, 3 * SAMPLES):
        classes[:, 0, place] = model.decoder(classes, context)[:, 0, place].argmax(-1)
    np.testing.assert_array_equal(drawn[:, 50:], samples_from_model(expand(classes[:, 0, 50:])))
    row = world.hear(tokens[1:], known[1:], seed=3, row_seeds=[1])
    np.testing.assert_array_equal(row[0], world.hear(tokens, known, seed=3)[1])


def test_scores_of_frames_are_of_frames(world):
    tokens = world.tokenize(make_frames(2, 5), make_sounds(2, 5))
    yes = torch.ones(2, 5, dtype=torch.bool)
    clip = TokenClip(tokens, make_actions("discrete", 2, 5), torch.zeros(2, 5), ~yes, yes, yes)
    scores = world.score(clip, 2)
    assert scores.nats.shape == (2, 3, *world.tokenizer.grid) and scores.sound_nats.shape == (2, 3, TOKENS)
    with torch.no_grad():
        logits = world.dynamics(tokens, clip.actions).logits[:, 1:].log_softmax(-1)
    nats = -logits.gather(-1, tokens[:, 2:, ..., None])[..., 0]
    torch.testing.assert_close(scores.nats.sum((1, 2, 3)) + scores.sound_nats.sum((1, 2)), nats.sum((1, 2, 3)))
    assert int(world.dynamics.layout.seen(tokens).max()) < CODES
    dream = world.start(make_frames(1, 2), [[0]])
    dream.step([1])
    assert dream.entropy().shape == (1, *world.tokenizer.grid) and dream.entropy().isfinite().all()
    silent = make_world()
    plain = dataclasses.replace(clip, tokens=silent.tokenize(make_frames(2, 5)))
    assert silent.score(plain, 2).sound_nats.shape == (2, 3, 0)


def test_a_goal_is_as_near_as_it_looks_whatever_is_heard():
    world, frames, sounds = make_heard_world(), make_frames(3, 1), make_sounds(6, 1)
    tokens, other = (world.tokenize(frames, some)[:, 0] for some in sounds.split(3))
    rows, codes = world.tokenizer.grid[0], world.tokenizer.quantizer.codebook
    assert torch.equal(tokens[:, :rows], other[:, :rows]) and (tokens != other).flatten(1).any(1).all()
    distances = (codes[tokens[:, :rows]] - codes[tokens[0, :rows]]).square().mean((1, 2, 3))
    torch.testing.assert_close(code_distance(world.engine, other, tokens[0]), distances)
    reached = forecast_plans(world.start(frames[:1], [[]]), [[1]]).tokens[0, 0, :rows]
    candidates = torch.tensor([0.0, 1.0, 0.0]).view(1, 1, 1, -1)
    for gradient in (False, True):
        info = {"pixels": frames[:1, None], "goal": frames[1:2, None]}
        cost = CostModel(world).get_cost(info, candidates.requires_grad_(gradient))
        distance = (codes[reached] - codes[tokens[1, :rows]]).square().mean()
        torch.testing.assert_close(cost.detach(), distance.detach().view(1, 1))


def test_pitches_are_found():
    steps = np.arange(96) / 2000
    assert pitches(np.stack([np.sin(2 * np.pi * pitch * steps) for pitch in (500, 125, 250)])).tolist() == [2, 0, 1]


def test_tokens_of_sound_are_described(store, world, tmp_path):
    from worldvq.data.inspect import info

    assert world.codec is not None
    save_tokenizer(tmp_path / "tokenizer", world.tokenizer)
    world.codec.save(tmp_path / "sound")
    tokenize(tmp_path / "tokenizer", store.path, tmp_path / "tokens", "cpu", tmp_path / "sound")
    assert TokenStore.open(tmp_path / "tokens").verify() == []
    (row,) = [text for text in info(tmp_path / "tokens").columns[1]._cells if "of sound" in str(text)]
    assert "4x3 a frame, 18 codes" in str(row) and "4 of them of sound, 7 codes" in str(row)
