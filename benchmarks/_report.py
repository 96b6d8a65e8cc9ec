"""Results: a JSON file that says where they come from, and a picture of them."""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path
from typing import Any

__all__ = ["draw_bars", "draw_curves", "write_results"]


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write results, with the machine and the build they were measured on."""
    from llama_runner import _core
    from llama_runner._support import hardware

    where = {
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "processor": hardware.cpu_name(),
        "usable_cpus": hardware.usable_cpus(),
        "llama_cpp": _core.native_version(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(where | results, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")


def _pyplot() -> Any:
    try:
        return importlib.import_module("matplotlib.pyplot")
    except ModuleNotFoundError:
        print("no picture: python -m pip install matplotlib")
        return None


def draw_curves(path: Path, panels: dict[str, dict[str, list[float]]], unit: str) -> None:
    """One panel of curves for each title; says so where matplotlib is not there."""
    plt = _pyplot()
    if plt is None:
        return
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(8, 3 * len(panels)), squeeze=False, layout="constrained"
    )
    for axis, (title, curves) in zip(axes[:, 0], panels.items(), strict=True):
        for label, values in curves.items():
            axis.plot(range(1, len(values) + 1), values, label=label, linewidth=1)
        axis.set_title(title, loc="left", fontsize="medium")
        axis.set_ylim(bottom=0)
        axis.legend()
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel(unit)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(f"written: {path}")


def draw_bars(path: Path, panels: dict[str, dict[str, float]], unit: str) -> None:
    """One panel of horizontal bars for each title; says so where matplotlib is not there."""
    plt = _pyplot()
    if plt is None:
        return
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(7, 0.6 + 0.42 * sum(len(bars) + 1 for bars in panels.values())),
        height_ratios=[len(bars) + 1 for bars in panels.values()], squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, (title, bars) in zip(axes[:, 0], panels.items(), strict=True):
        drawn = axis.barh(list(bars), list(bars.values()), color="#4c72b0")
        axis.bar_label(drawn, fmt="%.4g", padding=3)
        axis.set_title(title, loc="left", fontsize="medium")
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel(unit)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(f"written: {path}")
