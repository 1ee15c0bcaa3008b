"""The command line, verb by verb on the tiny config."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from support.command_line import check_error, run, succeed
from support.products import open_picture, probe

from worldvq.data.episodes import EpisodeStore
from worldvq.evaluation import likelihood
from worldvq.stages.act import _play as blindly
from worldvq.world.model import WorldModel

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def verbs(tmp_path_factory):
    """The same road, verb by verb and smaller; the first four verbs."""
    root = tmp_path_factory.mktemp("verbs")
    short = ["--seed", 7, "--device", "cpu", "evaluate.context=2", "evaluate.horizon=3"]
    few = ["--frames", 400, "--workers", 1, "--seed", 3, "env.max_steps=60"]
    assert "7 episodes, 400 frames" in succeed(
        "record", "worldvq/Maze-v0", "--config", "tiny", "--out", root / "data", *few
    )
    tokenizer = ["--data", root / "data", "--out", root / "tokenizer"]
    assert "device cpu" in succeed("train", "tokenizer", "--config", "tiny", *tokenizer, "--steps", 4, *short)
    tokens = ["--tokenizer", root / "tokenizer", "--data", root / "data", "--out", root / "tokens"]
    assert "tokens of 7 episodes" in succeed("tokenize", *tokens, "--device", "cpu")
    dynamics = ["--tokens", root / "tokens", "--tokenizer", root / "tokenizer", "--out", root / "dynamics"]
    assert str(root / "world") in succeed("train", "dynamics", "--config", "tiny", *dynamics, "--steps", 2, *short)
    return root


def test_imagine_prints_what_it_wrote(verbs, tmp_path):
    given = ["--world", verbs / "world", "--data", verbs / "data", "--device", "cpu"]
    for name, actions in (("a.mp4", "recorded"), ("b.gif", "look_left")):
        steps = ["--context", 2, "--frames", 5, "--clips", 2, "--temperature", 0.8, "--top-k", 5, "--actions", actions]
        text = succeed("imagine", *given, "--out", tmp_path / name, *steps)
        assert text.split() == [str(tmp_path / name), str((tmp_path / name).with_suffix(".png"))]
        assert probe(tmp_path / name)[0] == 7
        assert open_picture((tmp_path / name).with_suffix(".png"))


@pytest.mark.parametrize(("name", "steps"), [("tokenizer", 4), ("dynamics", 2)])
def test_options_of_training_stand_for_keys_of_the_config(verbs, name, steps):
    training = yaml.safe_load((verbs / name / "config.yaml").read_text())[f"{name}_training"]
    assert (training["steps"], training["seed"]) == (steps, 7)


def test_evaluate_writes_a_report(verbs, tmp_path):
    protocol = ["--clips", 4, "--context", 2, "--horizon", 3, "--batch-size", 2, "--seed", 5, "--device", "cpu"]
    given = ["--world", verbs / "world", "--data", verbs / "data", "--out", tmp_path / "report"]
    text = succeed("evaluate", *given, *protocol)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert (report["num_clips"], report["horizon"], report["seeds"]["clips"]) == (4, 3, 5)
    assert f"{report['nats_per_token']:.3f} nats/token" in text and str(tmp_path / "report" / "index.html") in text
    page = re.sub(r"base64,[^\"]*", "", (tmp_path / "report" / "index.html").read_text())  # where any word may stand
    assert "http" not in page
    assert probe(tmp_path / "report" / "rollout.mp4")[0] == 5


def test_evaluate_acts_in_the_environment_itself(verbs, tmp_path):
    protocol = ["--clips", 4, "--context", 2, "--horizon", 3, "--situations", 4, "--device", "cpu"]
    given = ["--world", verbs / "world", "--data", verbs / "data", "--out", tmp_path]
    text = succeed("evaluate", *given, *protocol, "--counterfactual", "--memory")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["counterfactual"]["situations"] + report["counterfactual"]["left_out"] == 4
    assert ["look_left", "look_right"] in report["memory"]["undoes"]
    assert "of imagined branches are told apart at step 4; by chance" in text
    assert open_picture(tmp_path / "branches.png") and "Does it obey?" in (tmp_path / "index.html").read_text()


def test_compare_sets_the_numbers_of_reports_side_by_side(verbs, tmp_path):
    protocol = ["--clips", 4, "--context", 2, "--horizon", 3, "--situations", 4, "--device", "cpu"]
    given = ["--world", verbs / "world", "--data", verbs / "data", *protocol]
    succeed("evaluate", *given, "--out", tmp_path / "a", "--counterfactual")
    succeed("evaluate", *given, "--out", tmp_path / "b", "--counterfactual", "--temperature", 0)
    text = succeed("compare", tmp_path / "a", tmp_path / "b" / "report.json", "--out", tmp_path / "ab")
    assert "sampling.temperature: 1.0 → 0.0" in text and text.count("dynamics") == 0  # nothing else differs
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in "ab"]
    found = json.loads((tmp_path / "ab" / "compare.json").read_text())
    values = {measure["name"]: measure["values"] for measure in found["measures"]}
    gain = [report["gains"]["psnr"]["over_shuffled_actions"]["mean"] for report in reports]
    assert values["PSNR over shuffled actions, dB"] == pytest.approx(gain)
    for name, key in (("PSNR of imagined frames, dB", "psnr"), ("SSIM of imagined frames", "ssim")):
        assert values[name] == pytest.approx([report["summary"][key]["imagined"] for report in reports])
    assert values["Nats a token"] == pytest.approx([report["nats_per_token"] for report in reports])
    assert values["Reward error"] == pytest.approx([report["rewards"]["mae"] for report in reports])
    retrieval = [report["counterfactual"]["retrieval"]["mean"][3] for report in reports]
    assert values["Retrieval of branches, step 4"] == pytest.approx(retrieval)
    assert probe(tmp_path / "ab" / "compare.mp4") == (5, "h264", "yuv420p")
    succeed("evaluate", *given, "--out", tmp_path / "b", "--horizon", 2)
    names = sorted(tmp_path.iterdir())
    refused = run("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "new")
    check_error(refused, 2, [f"horizon: {tmp_path / 'a'} has 3, {tmp_path / 'b'} has 2"])
    assert sorted(tmp_path.iterdir()) == names


def test_a_world_says_how_it_was_trained(verbs):
    training = WorldModel.load(verbs / "world", "cpu").meta["training"]
    assert set(training) == {"tokenizer_training", "tokenizer_loss", "dynamics_training"}
    assert (training["tokenizer_training"]["steps"], training["dynamics_training"]["steps"]) == (4, 2)


def test_evaluate_looks_for_objects_and_dreams_long(verbs, tmp_path):
    protocol = ["--clips", 4, "--context", 2, "--horizon", 3, "--situations", 4, "--dreams", 2, "--device", "cpu"]
    given = ["--world", verbs / "world", "--data", verbs / "data", "--out", tmp_path]
    text = succeed("evaluate", *given, *protocol, "--objects", "--long")
    report = json.loads((tmp_path / "report.json").read_text())
    assert 1 <= report["objects"]["situations"] <= 4 and report["objects"]["steps"] == [1, 4, 8]
    assert (report["long"]["dreams"], report["long"]["steps"]) == (2, [10, 50, 100, 300])
    assert f"{report['long']['drift']['mean']:.1%} drift" in text
    page = (tmp_path / "index.html").read_text()
    assert open_picture(tmp_path / "long_dreams.png") and (tmp_path / "long_ssim.png").is_file()
    assert "Does it last?" in page and "Does it keep what is there?" in page


def test_evaluate_lets_the_dream_decide(verbs, tmp_path):
    protocol = ["--clips", 4, "--context", 2, "--horizon", 3, "--situations", 4, "--device", "cpu"]
    given = ["--world", verbs / "world", "--data", verbs / "data", "--out", tmp_path]
    text = succeed("evaluate", *given, *protocol, "--decisions")
    found = json.loads((tmp_path / "report.json").read_text())["decisions"]
    assert (found["situations"], found["plans"]) == (4, 5)
    assert 0 <= found["regret"]["dream"]["mean"] <= found["returns"]["best"]["mean"]
    assert "planning with the real environment as model" in text and "regret of the dream's pick" in text
    assert "Does it decide well?" in (tmp_path / "index.html").read_text()


def interrupted_at(call):
    """Play blindly as the stage does, until somebody presses Ctrl-C at the call of this number."""
    calls = []

    def play(*arguments):
        calls.append(arguments)
        if len(calls) == call:
            raise KeyboardInterrupt
        return blindly(*arguments)

    return play


def test_act_plans_in_the_real_environment(verbs, tmp_path, monkeypatch):
    given = ["--world", verbs / "world", "--data", verbs / "data", "--device", "cpu"]
    small = ["--episodes", 2, "--horizon", 3, "--every", 2, "--candidates", 4, "--seed", 5]
    monkeypatch.setattr("worldvq.stages.act.QUIET", 0)
    text = succeed("act", *given, *small, "--out", tmp_path / "one")
    report = json.loads((tmp_path / "one" / "report.json").read_text())
    assert report["episodes"] == len(report["planner"]["returns"]) == len(report["random"]["returns"]) == 2
    steps = report["planner"]["steps"][0]
    assert text.startswith(
        f"playing 2 episodes of '{report['env_id']}', each planned and at random\nepisode 1, at random"
    )
    assert text.index("episode 1, step 1, return") < text.index(f"episode 1, step {steps}, return")
    assert probe(tmp_path / "one" / "act.mp4") == (steps + 1, "h264", "yuv420p")
    assert f"random   {report['random']['mean']:.2f}" in text and " against acting at random" in text
    monkeypatch.setattr("worldvq.stages.act._play", interrupted_at(2))
    assert run("act", *given, *small, "--out", tmp_path / "two").returncode == 130
    filmed = (tmp_path / "two" / "act.mp4").stat().st_mtime_ns
    monkeypatch.undo()
    succeed("act", *given, *small, "--out", tmp_path / "two")
    assert (tmp_path / "two" / "act.mp4").stat().st_mtime_ns == filmed  # the first episode was not played again
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"act.mp4", "report.json", ".lock"}
    again = json.loads((tmp_path / "two" / "report.json").read_text())
    assert {key: again[key] for key in ("planner", "random")} == {key: report[key] for key in ("planner", "random")}
    for wrong, words in (
        (["--planner", "best"], ["no planner 'best'", "shooting or cem"]),
        (["--every", 9], ["--every 9", "--horizon 3"]),
        (["--data", tmp_path], ["no dataset"]),
    ):
        result = run("act", *given, *small, "--out", tmp_path / "none", *wrong)
        check_error(result, 2, words)
        assert not (tmp_path / "none").exists()


def test_evaluate_runs_no_code_that_a_dataset_names(verbs, tmp_path):
    data = shutil.copytree(verbs / "data", tmp_path / "data")
    meta = json.loads((data / EpisodeStore.meta_file).read_text())
    meta["env"]["id"] = "somebody:Else-v0"
    del meta["checksum"]  # as who changed it would
    (data / EpisodeStore.meta_file).write_text(json.dumps(meta))
    result = run("evaluate", "--world", verbs / "world", "--data", data, "--out", tmp_path / "out", "--memory")
    check_error(result, 2, ["somebody:Else-v0", "--trust"])


def test_tokens_are_compressed_and_come_back(verbs, tmp_path):
    file, world = tmp_path / "tokens.wvq", ["--world", verbs / "world"]
    text = succeed("compress", *world, "--tokens", verbs / "tokens", "--episodes", "heldout", "--out", file)
    assert "% against their cross-entropy" in text and "tokens/s" in text and f"{file.stat().st_size:,}" in text
    assert "tokens of 1 episode" in succeed("decompress", *world, file, "--out", tmp_path / "back")
    (path,) = (tmp_path / "back" / "episodes").iterdir()
    assert path.read_bytes() == (verbs / "tokens" / "episodes" / path.name).read_bytes()


@pytest.mark.parametrize("plugin", [True, False])
def test_likelihood_is_a_table_of_bits(verbs, plugin, monkeypatch):
    if plugin:
        pytest.importorskip("pillow_jxl")
    else:
        monkeypatch.setattr(likelihood, "pillow_jxl", None)
    text = succeed("likelihood", "--world", verbs / "world", "--data", verbs / "data", "--clips", 2, "--device", "cpu")
    assert "16 frames" in text and "lossless WebP" in text and "scale of the logistic" in text
    assert ("pip install 'worldvq[jxl]'" in text) != plugin
    assert text.count("lossless JPEG XL") == 1  # in the table, or in the line that says how to get it


def test_data_is_described_checked_and_drawn(verbs, tmp_path):
    text = succeed("data", "info", verbs / "data")
    assert "worldvq/Maze-v0" in text and "400 of 64x64" in text and "forward" in text
    assert "64 codes" in succeed("data", "info", verbs / "tokens")
    for name in ("data", "tokens"):
        assert "7 episodes, all as committed" in succeed("data", "verify", verbs / name)
    written = succeed("data", "preview", verbs / "data", "--out", tmp_path).split()
    assert written == [str(tmp_path / "contact_sheet.png"), str(tmp_path / "preview.mp4")]
    assert open_picture(written[0]) and probe(written[1])[1:] == ("h264", "yuv420p")


@pytest.mark.parametrize("name", ["data", "tokens"])
def test_verify_names_a_broken_file(verbs, tmp_path, name):
    copy = shutil.copytree(verbs / name, tmp_path / name)
    path = copy / "episodes" / "000002.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    result = run("data", "verify", copy)
    assert result.returncode == 1 and str(path) in result.stdout
    assert result.stderr == f"worldvq: error: {copy}: 1 of 7 episodes broken\n"


def test_sides_that_the_help_promises_are_recorded(tmp_path):
    few = ["--episodes", 1, "--workers", 1, "env.max_steps=5"]
    succeed("record", "worldvq/Maze-v0", "--out", tmp_path / "data", "--size", "84x60", *few)
    assert EpisodeStore.open(tmp_path / "data").meta.frame_size == (84, 60)


def test_training_starts_from_a_world(verbs, tmp_path):
    start = ["--from", verbs / "world", "--steps", 1, "--device", "cpu"]
    text = succeed("train", "tokenizer", "--config", "tiny", "--data", verbs / "data", "--out", tmp_path / "t", *start)
    assert text.endswith(f"tokenizer: {tmp_path / 't'}\n")
    assert json.loads((tmp_path / "t" / "inputs.json").read_text())["start"]
