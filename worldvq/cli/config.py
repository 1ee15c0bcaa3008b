"""``worldvq config list|show|explain``."""

from __future__ import annotations

import shutil
import textwrap
from typing import Annotated

import typer

from worldvq.cli.options import Overrides

app = typer.Typer()
config_app = typer.Typer(help="List the built-in configs, show one whole, explain its keys.", no_args_is_help=True)
app.add_typer(config_app, name="config")


@config_app.command("list")
def list_command() -> None:
    """List the built-in configs, each with what it is for."""
    from worldvq.stages.experiment import built_in_configs

    names = built_in_configs()
    for name, file in names.items():
        first = file.read_text(encoding="utf-8").partition("\n")[0]
        print(f"{name:{max(map(len, names))}}  {first.removeprefix('#').strip()}")


@config_app.command("show")
def show_command(
    name: Annotated[str, typer.Argument(help="A built-in config, or a YAML file.")], overrides: Overrides = None
) -> None:
    """Print a whole config as YAML, all defaults included: what a run with it would be told.

    It can be saved and used as a file: worldvq config show doom tokenizer.width=96 > mine.yaml

    tokenizer.frame_size is left out where nobody gave it: training takes it from the dataset.
    """
    from worldvq.config.yaml_loading import dump_yaml
    from worldvq.stages.experiment import load_config

    config = load_config(name, overrides or [])
    given = "frame_size" in config.tokenizer.model_fields_set
    data = config.model_dump(mode="json", exclude=None if given else {"tokenizer": {"frame_size"}})
    print("" if given else "# tokenizer.frame_size: as the dataset has it\n", dump_yaml(data), sep="", end="")


@config_app.command("explain")
def explain_command(
    key: Annotated[
        str | None, typer.Argument(help="A key or a section, for instance tokenizer.quantizer. Default: all there are.")
    ] = None,
) -> None:
    """Say what a key of the config is: its type, its default, and what it does.

    Example: worldvq config explain dynamics.prior
    """
    from worldvq.config.explain import explain
    from worldvq.stages.experiment import ExperimentConfig

    width, lines = min(shutil.get_terminal_size().columns, 120), []
    for path, kind, default, text in explain(ExperimentConfig, key):
        lines += [f"{path}: {kind}; default {default}"] if kind else ["", path]
        lines += textwrap.wrap(text, width, initial_indent="    ", subsequent_indent="    ")
    print("\n".join(lines).lstrip())
