"""Imports run one way (docs/architecture.md): checked on the syntax trees, so nothing needs to be run."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOW = ("worldvq", "worldvq.types", "worldvq.errors", "worldvq.registration", "worldvq.config", "worldvq.files")
MODELS = (*LOW, "worldvq.nn", "worldvq.models")
WORLD = (*MODELS, "worldvq.world")
DATA = (*LOW, "worldvq.media", "worldvq.data")
MAY_IMPORT = {
    "worldvq.types": (),
    "worldvq.errors": (),
    "worldvq.registration": (),
    "worldvq.files": ("worldvq.types", "worldvq.errors", "worldvq.files"),
    "worldvq.config": ("worldvq.types", "worldvq.errors", "worldvq.files", "worldvq.config"),
    "worldvq.nn": (*LOW, "worldvq.nn"),
    "worldvq.models": MODELS,
    "worldvq.world": WORLD,
    "worldvq.media": (*LOW, "worldvq.media"),
    "worldvq.data": DATA,
    "worldvq.recording": (*DATA, "worldvq.recording"),
    "worldvq.training": (*LOW, "worldvq.nn", "worldvq.training"),
    "worldvq.planning": (*WORLD, "worldvq.planning"),
    "worldvq.compression": (*WORLD, *DATA, "worldvq.compression"),
    "worldvq.evaluation": (*WORLD, *DATA, "worldvq.planning", "worldvq.evaluation"),
    "worldvq.play": (*WORLD, *DATA, "worldvq.play"),
    "worldvq.stages": (
        *(*WORLD, *DATA, "worldvq.recording", "worldvq.training", "worldvq.planning", "worldvq.evaluation"),
        *("worldvq.play", "worldvq.compression"),
        "worldvq.stages",
    ),
    "worldvq.__main__": ("worldvq.cli",),
    "worldvq_envs": ("worldvq.types", "worldvq.errors", "worldvq.config", "worldvq_envs"),
    "worldvq_envs.dream": (*WORLD, *DATA, "worldvq_envs"),
    "worldvq_envs.dream_rows": (*WORLD, *DATA, "worldvq.evaluation", "worldvq_envs"),
}
"""What each room may import of this project. Only ``worldvq.cli`` may import everything."""
ROOMS = {"cli", "config", "data", "evaluation", "files", "media", "models", "nn", "recording", "stages", "training"}
ROOMS |= {"compression", "planning", "play", "world"}


def modules():
    for root, folder in ((ROOT, "worldvq"), (ROOT / "envs", "worldvq_envs")):
        for path in sorted((root / folder).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


def imports(path):
    """Modules that a file imports, wherever it does; of a package, the module that the name is if it is one."""
    names = {name for name, _ in modules()}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write the whole name"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in names else str(node.module)


def within(name, rooms):
    return any(name == room or (room != "worldvq" and name.startswith(f"{room}.")) for room in rooms)


def ours(name):
    return name.split(".")[0] in ("worldvq", "worldvq_envs", "envs")


def test_the_rooms_are_those_of_the_plan():
    folders = {path.name for path in (ROOT / "worldvq").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders == ROOMS
    files = {path.stem for path in (ROOT / "worldvq").glob("*.py")}
    assert files == {"__init__", "__main__", "types", "errors", "registration"}


def test_layers():
    wrong = []
    for name, path in modules():
        room = max((room for room in MAY_IMPORT if within(name, (room,))), key=len, default=None)  # the innermost
        if room is not None:
            allowed = MAY_IMPORT[room]
            wrong += [
                f"{name} imports {target}" for target in imports(path) if ours(target) and not within(target, allowed)
            ]
    assert not wrong, wrong


def test_every_room_is_held_to_something():
    held = {*MAY_IMPORT, "worldvq.cli", "worldvq"}
    assert [name for name, _ in modules() if name != "worldvq" and not within(name, held - {"worldvq"})] == []


def test_there_is_no_circle():
    """Not even one that an import inside a function, or one for types alone, closes."""
    graph = {name: {target for target in imports(path) if ours(target)} for name, path in modules()}
    graph["worldvq"] = {"worldvq.registration"}  # what it imports at once
    done, trail = set(), []

    def visit(name):
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name in done:
            return
        trail.append(name)
        for target in sorted(graph.get(name, ())):
            visit(target)
        done.add(trail.pop())

    for name in graph:
        visit(name)


def test_models_know_no_trainer_logger_or_pickle():
    for name, path in modules():
        targets = {target.split(".")[0] for target in imports(path)}
        assert "pickle" not in targets, name
        if within(name, ("worldvq.nn", "worldvq.models", "worldvq.world")):
            assert not targets & {"accelerate", "rich", "logging"}, name


def test_tests_share_through_support_alone():
    """So that a file of tests can be renamed, split or run alone."""
    wrong = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for target in imports(path):
            first, *rest = target.split(".")
            if any(part.startswith("test_") or part in ("conftest", "unit", "tests") for part in (first, *rest[:1])):
                wrong.append(f"{path.relative_to(ROOT)} imports {target}")
    assert not wrong, wrong
