"""``worldvq sound reconstruct|convert|phonemes|sample``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from worldvq.cli.options import DeviceOption

if TYPE_CHECKING:
    from worldvq.stages.sound_sheets import Heard

app = typer.Typer()
sound_app = typer.Typer(
    help="What a codec of sound is worth: files to hear, spectrograms, numbers.", no_args_is_help=True
)
app.add_typer(sound_app, name="sound")

CodecOption = Annotated[Path, typer.Option(help="Run folder of a trained codec of sound.")]
DataOption = Annotated[Path, typer.Option(help="Store of sounds; its held-out ones are used.")]
OutOption = Annotated[Path, typer.Option(help="Folder of the WAV files and the spectrograms.")]
CountOption = Annotated[int, typer.Option(min=1, max=1024, help="Held-out sounds, at most.")]
SecondsOption = Annotated[float, typer.Option(min=0.01, max=60, help="Of each, from its middle.")]
TemperatureOption = Annotated[float, typer.Option(min=0, help="Of the draws; 0 takes the most probable sample.")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**63 - 2, help="Of the draws.")]


@sound_app.command("reconstruct")
def reconstruct_command(
    codec: CodecOption,
    data: DataOption,
    out: OutOption,
    count: CountOption = 24,
    seconds: SecondsOption = 2.0,
    temperature: TemperatureOption = 1.0,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Draw held-out sounds again from their codes, and from those of other sounds; log-mel distances of both.

    Example: worldvq sound reconstruct --codec runs/speech/sound --data runs/speech/data --out reconstructions
    """
    from worldvq.stages.sound_sheets import reconstruct

    draws = {"temperature": temperature, "seed": seed}
    _print(reconstruct(codec, data, out, count=count, seconds=seconds, device=device, **draws))


@sound_app.command("convert")
def convert_command(
    codec: CodecOption,
    data: DataOption,
    out: OutOption,
    speaker: Annotated[str | None, typer.Option(help="Who shall speak. Default: each of the others in turn.")] = None,
    count: CountOption = 24,
    seconds: SecondsOption = 2.0,
    temperature: TemperatureOption = 1.0,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Let other speakers say what held-out sounds say; who is heard, by a classifier trained on real sounds.

    Example: worldvq sound convert --codec runs/speech/sound --data runs/speech/data --out converted --speaker slt
    """
    from worldvq.stages.sound_sheets import convert

    draws = {"temperature": temperature, "seed": seed}
    _print(convert(codec, data, out, count=count, seconds=seconds, speaker=speaker, device=device, **draws))


@sound_app.command("phonemes")
def phonemes_command(codec: CodecOption, data: DataOption, device: DeviceOption = "auto") -> None:
    """How well codes name phonemes: by majority on half of the held-out sounds, measured on the other half.

    Beside it: k-means of MFCCs with as many clusters, and chance.

    Example: worldvq sound phonemes --codec runs/speech/sound --data runs/speech/data
    """
    from worldvq.stages.sound_sheets import phonemes

    _print(phonemes(codec, data, device))


@sound_app.command("sample")
def sample_command(
    prior: Annotated[Path, typer.Option(help="Run folder of a trained prior over codes of sound.")],
    out: OutOption,
    speaker: Annotated[str | None, typer.Option(help="Who speaks. Default: all in turn.")] = None,
    count: Annotated[int, typer.Option(min=1, max=64, help="Sounds of each speaker.")] = 2,
    seconds: Annotated[float, typer.Option(min=0.01, max=60, help="Of each.")] = 3.0,
    temperature: TemperatureOption = 1.0,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Draw sounds that nobody has made: codes from the prior, samples from the codec.

    Example: worldvq sound sample --prior runs/speech/sound_prior --out samples --seconds 3
    """
    from worldvq.stages.sound_sheets import sample

    draws = {"temperature": temperature, "seed": seed}
    _print(sample(prior, out, speaker=speaker, count=count, seconds=seconds, device=device, **draws))


def _print(heard: Heard) -> None:
    print("\n".join([*heard.lines, *([str(heard.folder)] if heard.folder else [])]))
