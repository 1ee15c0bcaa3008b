"""Writes docs/config.md, the reference of every key of a config, from the types that read them.

python tools/config_reference.py
"""

from __future__ import annotations

from pathlib import Path

from worldvq.config.explain import keys_of
from worldvq.stages.experiment import ExperimentConfig

HEAD = """# Every key of a config

Made by `python tools/config_reference.py` from the types that read a config: change those, not this page.

`worldvq config explain KEY` says the same of one key or section; `worldvq config list` names the built-in configs, and
`worldvq config show NAME` prints one whole. A key is given in a YAML file (`--config mine.yaml`) or on the command line
(`tokenizer.quantizer.kind=ema`); what is not given has the default below.
"""


def page() -> str:
    """Return the reference as Markdown: a heading and a table for every section."""
    lines = [HEAD]
    for path, kind, default, text in keys_of(ExperimentConfig):
        name = path.rpartition(".")[2]
        if not kind:
            lines += ["", f"{'#' * (2 + path.count('.'))} {path}", "", text, ""]
            lines += ["| key | type | default | what it does |", "|---|---|---|---|"]
        else:
            lines.append(f"| `{name}` | {kind} | `{default}` | {text} |")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


if __name__ == "__main__":
    Path(__file__).resolve().parents[1].joinpath("docs", "config.md").write_text(page(), encoding="utf-8")
