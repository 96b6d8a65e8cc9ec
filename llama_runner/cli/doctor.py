"""``llama-runner doctor``: check what is installed and what is missing."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import click

from llama_runner import __version__
from llama_runner._support import hardware
from llama_runner.cli.output import byte_size, print_json, print_table
from llama_runner.errors import LlamaError

__all__ = ["doctor"]

BUILD_INFO = Path(__file__).parents[1] / "_build_info.json"


class Report:
    """Facts about the installation, hints to improve it, and problems that keep it from working."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self.hints: list[str] = []
        self.missing: list[str] = []


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Check the installation.

    The exit status is 1 if the default model cannot be run.
    """
    report = Report()
    for examine in (_versions, _native, _machine, _places, _extras):
        examine(report)
    if as_json:
        print_json(vars(report))
    else:
        print_table(report.found.items())
        for title, lines in (("could be better", report.hints), ("missing", report.missing)):
            for line in lines:
                click.echo(f"{title}: {line}")
    if report.missing:
        context.exit(1)


def _versions(report: Report) -> None:
    report.found["llama-runner"] = f"{__version__} in {BUILD_INFO.parent}"
    report.found["Python"] = f"{platform.python_version()} on {platform.platform()}"


def _native(report: Report) -> None:
    try:
        from llama_runner import _core
    except ImportError as error:
        report.missing.append(f"the native core ({error}); build it with: pip install -e .")
        return
    report.found["llama.cpp"] = _core.native_version()
    build = json.loads(BUILD_INFO.read_text()) if BUILD_INFO.is_file() else {}
    report.found["build"] = ", ".join(f"{name} {value}" for name, value in _flat(build)) or "?"

    built = [name for name, value in _core.system_info().items() if value != "0"]
    report.found["CPU"] = hardware.cpu_name()
    report.found["built for"] = " ".join(built)
    if unused := [name for name in hardware.cpu_features() if name not in built]:
        report.hints.append(
            f"this CPU also has {' '.join(unused)}; a build on this machine uses them: "
            "LLAMA_RUNNER_NATIVE=1 pip install --no-binary llama-runner llama-runner"
        )
    gpus = [device for device in _core.devices() if device["kind"] != "cpu"]
    report.found["accelerators"] = (
        ", ".join(f"{gpu['description']} ({byte_size(gpu['memory_total'])})" for gpu in gpus)
        or "none"
    )
    if not gpus and shutil.which("nvidia-smi"):
        report.hints.append(
            "this machine seems to have an NVIDIA GPU; build with LLAMA_RUNNER_ACCEL=cuda"
        )


def _flat(build: dict[str, object]) -> Iterator[tuple[str, str]]:
    for name, value in build.items():
        text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        yield name.replace("_", " "), text


def _machine(report: Report) -> None:
    decode, batch = hardware.thread_counts(None, None)
    report.found["threads"] = (
        f"{decode} for decoding, {batch} for prompts ({hardware.usable_cpus()} usable processors "
        f"of {os.cpu_count()}, {hardware.physical_cores()} cores)"
    )
    report.found["memory"] = byte_size(hardware.memory_limit())


def _places(report: Report) -> None:
    from llama_runner.loaders import default_model
    from llama_runner.loaders.catalogue.catalogue import cache_directory, catalogue_directory

    report.found["models in"] = os.fspath(cache_directory())
    report.found["own catalogue"] = os.fspath(catalogue_directory())
    try:
        path, words = default_model()
        with suppress(ImportError):  # a missing core was reported above
            from llama_runner.loaders import validate_model

            validate_model(path)
    except LlamaError as error:
        report.missing.append(str(error))
    else:
        report.found["default model"] = f"{words}: {path}"


def _extras(report: Report) -> None:
    if find_spec("huggingface_hub") is None:
        report.hints.append(
            "huggingface_hub is not installed; to pull from Hugging Face: "
            "pip install 'llama-runner[hf]'"
        )
