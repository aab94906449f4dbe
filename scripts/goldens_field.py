"""Take another tool's numbers once more: ``python scripts/goldens_field.py PATH/TO/mergekit-pytorch VERSION``.

Runs that program as it is, in float64, on the inputs and cases of ``tests/oracles/field.py``; writes the recipes and
what came out to ``tests/methods/field.json``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import safetensors.numpy
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.oracles import field  # noqa: E402

DIGITS = 13


def recipe_of(method: str, parameters: dict[str, object]) -> dict[str, object]:
    """The recipe, with file names instead of models."""
    shared = {name: value for name, value in parameters.items() if not isinstance(value, list)}
    own = {name: value for name, value in parameters.items() if isinstance(value, list)}
    models = [
        {"model": f"model{n}.safetensors", "parameters": {name: value[n] for name, value in own.items()}}
        for n in range(field.model_count(method))
    ]
    return {
        "merge_method": method,
        "base_model": "base.safetensors",
        "models": models,
        "parameters": shared,
        "dtype": "float64",
    }


def merged(program: str, recipe: dict[str, object], folder: Path) -> dict[str, list[float]]:
    """What the program makes of a recipe, flat, to that many digits."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    subprocess.run([program, "recipe.yaml", "out", "--quiet"], cwd=folder, check=True, capture_output=True)
    found: dict[str, list[float]] = {}
    for path in sorted((folder / "out").glob("*.safetensors")):
        for name, array in safetensors.numpy.load_file(path).items():
            found[name] = [float(f"{value:.{DIGITS}g}") for value in array.ravel().tolist()]
        path.unlink()
    return dict(sorted(found.items()))


def main(program: str, version: str) -> None:
    """Every case, one run of the program each."""
    taken = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for method, cases in field.CASES.items():
            base, models = field.inputs(field.model_count(method))
            for number, tensors in enumerate([base, *models]):
                file = "base" if number == 0 else f"model{number - 1}"
                safetensors.numpy.save_file(tensors, folder / f"{file}.safetensors")
            for parameters in cases:
                recipe = recipe_of(method, parameters)
                taken.append({"recipe": recipe, "merged": merged(program, recipe, folder)})
    lines = ",\n".join("  " + json.dumps(one) for one in taken)
    text = f'{{"program": "mergekit", "version": {json.dumps(version)}, "cases": [\n{lines}\n]}}\n'
    (ROOT / "tests" / "methods" / "field.json").write_text(text, "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
