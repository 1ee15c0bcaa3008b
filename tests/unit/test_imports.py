"""Imports run one way (docs/architecture.md): checked on the syntax trees, so nothing needs to be run."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOW = (
    "worldvq",
    "worldvq.types",
    "worldvq.config",
    "worldvq.yaml_loading",
    "worldvq.errors",
    "worldvq.differences",
    "worldvq.reading",
    "worldvq.tensors",
    "worldvq.atomic",
    "worldvq.lock",
    "worldvq.shard",
    "worldvq.registration",
)
MAY_IMPORT = {
    "worldvq.nn": (*LOW, "worldvq.nn"),
    "worldvq.data": (*LOW, "worldvq.data"),
    "worldvq.models": (*LOW, "worldvq.nn", "worldvq.models", "worldvq.losses", "worldvq.checkpoint"),
    "worldvq.losses": LOW,
    "worldvq.tokenizer_losses": (*LOW, "worldvq.nn", "worldvq.models", "worldvq.losses", "worldvq.regions"),
    "worldvq.regions": LOW,
    "worldvq.train": (
        *(*LOW, "worldvq.nn", "worldvq.checkpoint", "worldvq.optimizers"),
        *("worldvq.preemption", "worldvq.ranks", "worldvq.tracking"),
    ),
    "worldvq.ranks": LOW,
    "worldvq.tracking": LOW,
    "worldvq.preemption": LOW,
    "worldvq.optimizers": (*LOW, "worldvq.nn"),
}
# The only upward step: drawing a preview needs the video writer, and is imported when it is asked for.
EXCEPTIONS = {("worldvq.data.inspect", "worldvq.render")}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def modules(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts), path


def test_layers():
    wrong = []
    for name, path in modules("worldvq"):
        for target in imports(path):
            if target.split(".")[0] == "envs":
                wrong.append(f"{name} imports {target}")
            for layer, allowed in MAY_IMPORT.items():
                if not name.startswith(layer) or not target.startswith("worldvq") or (name, target) in EXCEPTIONS:
                    continue
                if not any(target == a or (a != "worldvq" and target.startswith(a + ".")) for a in allowed):
                    wrong.append(f"{name} imports {target}")
    assert not wrong, wrong


def test_models_know_no_trainer_logger_or_pickle():
    for name, path in [*modules("worldvq"), *modules("envs")]:
        targets = {target.split(".")[0] for target in imports(path)}
        assert "pickle" not in targets, name
        if name.startswith(("worldvq.nn", "worldvq.models")):
            assert not targets & {"accelerate", "rich", "logging"}, name
