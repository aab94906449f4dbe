"""Take whole recipes of another tool once more: ``python scripts/goldens_recipes.py FOLDER/OF/PROGRAMS VERSION``.

Runs ``mergekit-yaml``, and ``mergekit-multi`` for several documents, as they are on the models and recipes of
``tests/models/_field_recipes.py``; writes some elements of every tensor to ``tests/models/field_recipes.json``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.models import _field_recipes as recipes  # noqa: E402

OPTIONS = ("--no-copy-tokenizer", "--no-write-model-card", "--quiet")


def main(programs: str, version: str) -> None:
    """Every recipe, one run of a program each."""
    taken = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipes.make_models(folder)
        for title, text in recipes.RECIPES.items():
            (folder / "recipe.yaml").write_text(text, "utf-8")
            several = "\n---\n" in text
            program = f"{programs}/{'mergekit-multi' if several else 'mergekit-yaml'}"
            where = ["--out-path", title, "--intermediate-dir", f"{title}-steps"] if several else [title]
            subprocess.run([program, "recipe.yaml", *where, *OPTIONS], cwd=folder, check=True, capture_output=True)
            found = recipes.read(folder / title)
            taken[title] = {key: [float(f"{one:.13g}") for one in recipes.sample(found[key])] for key in sorted(found)}
    write(taken, version)


def write(taken: dict[str, dict[str, list[float]]], version: str) -> None:
    """One line for each tensor."""
    parts = []
    for title, tensors in taken.items():
        rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in tensors.items())
        parts.append(f" {json.dumps(title)}: {{\n{rows}\n }}")
    text = f'{{"program": "mergekit", "version": {json.dumps(version)}, "recipes": {{\n' + ",\n".join(parts) + "\n}}\n"
    (ROOT / "tests" / "models" / "field_recipes.json").write_text(text, "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
