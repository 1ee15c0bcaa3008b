"""`worldvq demo`: the whole road on the tiny config, and what it does when it is run again."""

import html.parser
import json
import math
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.command_line import check_error, run, spawn, succeed
from support.products import hashes, open_picture, probe

from worldvq.data.episodes import EpisodeStore
from worldvq.world.model import WorldModel

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """What `worldvq demo --config tiny` leaves."""
    out = tmp_path_factory.mktemp("road") / "demo"
    assert "reconstruction" in succeed("demo", "--config", "tiny", "--out", out, how=spawn)
    return out


def test_every_promised_file_is_there_and_opens(demo):
    with EpisodeStore.open(demo / "data") as store:
        assert store.verify() == [] and 1500 <= store.num_frames < 1500 + 121
    for name, steps in (("tokenizer", 40), ("dynamics", 20)):
        config = yaml.safe_load((demo / name / "config.yaml").read_text())
        more = {"tokenizer_loss"} if name == "tokenizer" else set()
        assert set(config) == {name, f"{name}_training"} | more and config[f"{name}_training"]["steps"] == steps
        rows = [json.loads(line) for line in (demo / name / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(10, steps + 1, 10))
        assert all(math.isfinite(row["loss"]) for row in rows)
        checkpoint = demo / name / "checkpoints" / f"step_{steps:08d}"
        assert {file.name for file in checkpoint.iterdir()} >= {"model.safetensors", "manifest.json"}
        assert open_picture(demo / name / "pictures" / f"{steps:08d}.png")
    world = WorldModel.load(demo / "world", "cpu")
    assert world.frame_size == (64, 64) and world.action_space.names[1] == "forward"
    assert open_picture(demo / "rollout.png")
    assert not [path for path in demo.rglob("*") if path.name.endswith(".tmp")]


def test_the_report_has_its_keys(demo):
    report = json.loads((demo / "report" / "report.json").read_text())
    for key in ("psnr", "ssim"):
        for name in ("imagined", "reconstruction", "copy_last", "shuffled_actions"):
            assert len(report[key][name]["mean"]) == 4 and np.shape(report[key][name]["ci95"]) == (4, 2)
            assert np.isfinite(report[key][name]["mean"]).all()
    assert (report["num_clips"], report["context"], report["horizon"]) == (8, 4, 4)
    assert 0 < report["nats_per_token"] < 3 * math.log(64)
    assert report["bits_per_frame"] == pytest.approx(report["nats_per_token"] * 64 / math.log(2))
    assert 1 <= report["perplexity"] <= 64 and report["seconds"] > 0
    assert {"worldvq", "torch", "python"} <= set(report["versions"]) and report["seeds"]["clips"] == 0


def test_the_page_needs_no_other_file(demo):
    page, links = (demo / "report" / "index.html").read_text(), []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            links.extend(value for name, value in attrs if name in ("src", "href", "poster", "srcset"))

    Parser().feed(page)
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"https?://|url\((?!data:)|@import|<link|<script[^>]+src", page)


@pytest.mark.parametrize("path", ["rollout.mp4", "report/rollout.mp4"])
def test_the_video_plays_everywhere_and_is_as_long_as_asked(demo, path):
    assert probe(demo / path) == (8, "h264", "yuv420p")


def test_rungs_of_a_ladder_are_compared(demo, tmp_path):
    tool = runpy.run_path(str(ROOT / "tools/ladder.py"))
    report = json.loads((demo / "report" / "report.json").read_text())
    better = report | {"nats_per_token": report["nats_per_token"] - 1}
    text = tool["table"]([demo, demo], [report, better])
    assert f"| nats a token | {report['nats_per_token']:.3f} | {better['nats_per_token']:.3f} | better |" in text
    assert text.count("the same") == len(text.splitlines()) - 3 > 3
    tool["draw"]([demo, demo], [report, better], tmp_path / "ladder.png")
    assert open_picture(tmp_path / "ladder.png")


def test_running_again_does_nothing_anew(demo):
    parts = ("data", "tokenizer", "tokens", "dynamics", "world", "report")
    before = hashes(demo, *parts)
    slow = ("data/episodes", "tokens/episodes", "tokenizer/checkpoints", "dynamics/checkpoints", "report")
    times = {path: path.stat().st_mtime_ns for path in hashes(demo, *slow)}
    text = succeed("demo", "--config", "tiny", "--out", demo)
    assert "training" not in text
    assert hashes(demo, *parts) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times  # not even written again


def test_without_its_report_only_the_evaluation_is_done_again(demo, tmp_path):
    out = shutil.copytree(demo, tmp_path / "demo")
    old = json.loads((out / "report" / "report.json").read_text())
    shutil.rmtree(out / "report")
    parts = ("data", "tokenizer", "tokens", "dynamics", "world")
    before = hashes(out, *parts)
    text = succeed("demo", "--config", "tiny", "--out", out)
    new = json.loads((out / "report" / "report.json").read_text())
    assert "training" not in text and hashes(out, *parts) == before
    for key in ("psnr", "ssim", "nats_per_token", "bits_per_frame", "perplexity", "rewards", "termination"):
        assert new[key] == old[key]
    assert (out / "report" / "index.html").is_file()


def test_a_report_in_the_precision_that_auto_comes_to_is_not_made_again(demo, tmp_path):
    out = shutil.copytree(demo, tmp_path / "demo")
    command = ["demo", "--config", "tiny", "--out", out, "evaluate.sampling.precision=auto", "evaluate.clips=8"]
    succeed(*command)
    report = out / "report" / "report.json"
    assert json.loads(report.read_text())["protocol"]["sampling"]["precision"] in ("no", "bf16")
    written = report.stat().st_mtime_ns
    succeed(*command)
    assert report.stat().st_mtime_ns == written


def test_another_config_in_the_same_folder_is_refused(demo):
    before = hashes(demo, "tokenizer")
    for change, words in (
        ("tokenizer_training.seed=1", ["tokenizer_training.seed: that run had 0, this one has 1"]),
        ("tokenizer_training.steps=41", ["tokens of a tokenizer of 40 steps, tokenizer_training.steps asks for 41: "]),
    ):
        check_error(run("demo", "--config", "tiny", "--out", demo, change), 2, words)
    assert hashes(demo, "tokenizer") == before
