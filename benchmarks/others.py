"""Another tool on the same models: mergekit, in an environment of its own that the benchmark makes."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

VERSION = "0.1.5"
REQUIREMENTS = ("torch==2.13.0", f"mergekit=={VERSION}")
"""torch by itself first: its builds for a CPU alone are found by their exact version."""


def mergekit(data: Path) -> Path:
    """The program ``mergekit-yaml``, installed unless it is there."""
    environment = data / f"mergekit-{VERSION}"
    program = environment / "bin" / "mergekit-yaml"
    done = environment / "installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
        for requirement in REQUIREMENTS:
            pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", requirement]
            subprocess.run(pip, check=True, stderr=subprocess.DEVNULL)
        done.touch()
    return program


def write_recipe(path: Path, settings: Mapping[str, object], base: Path | None, models: Sequence[Path]) -> None:
    """The recipe in its own format; ``weights``: one for each model; ``density``: of all."""
    weights = settings.get("weights")
    lines = [f"merge_method: {settings['merge_method']}", "dtype: bfloat16"]
    if base is not None:
        lines.append(f"base_model: {base}")
    lines.append("models:")
    for number, model in enumerate(models):
        lines.append(f"  - model: {model}")
        if isinstance(weights, tuple):
            lines.append(f"    parameters: {{weight: {weights[number]}}}")
    if "density" in settings:
        lines.append(f"parameters: {{density: {settings['density']}}}")
    path.write_text("\n".join(lines) + "\n")
