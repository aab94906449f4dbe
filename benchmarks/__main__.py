"""`python -m benchmarks`: time stockpot against the floor, and against mergekit, on the same inputs.

For each case: build its models unless they are there, run one uncounted round, then ``--repeats`` rounds of floor,
stockpot and, where the case has a recipe for it, mergekit in turn. A limit that is missed is printed and leaves the
exit status 0; a run that fails or writes the wrong number of bytes ends the benchmark with exit status 1.
"""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import measure, models, others, report
from benchmarks.cases import CASES, Case
from benchmarks.shapes import ENTRIES

ROOT = Path(__file__).parents[1]
FLOOR = Path(__file__).with_name("floor.py")
ERROR_LINES = 10


class BenchmarkError(Exception):
    """A run failed, or its output is not what it should be."""


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} (default: all)")
    add("--data", type=Path, default=ROOT / ".bench", help="where the models are")
    add("--repeats", type=int, default=3, help="counted rounds (default 3)")
    add("--no-mergekit", action="store_true", help="leave mergekit out")
    add("--out", type=Path, default=Path(__file__).with_name("results"))
    given = parser.parse_args()
    if given.repeats < 1:
        parser.error("--repeats must be at least 1")
    if unknown := set(given.cases) - set(CASES):
        parser.error(f"no case is called {', '.join(sorted(unknown))}")
    return given


def checked(measured: measure.Measurement, out: Path, size: int | None) -> measure.Measurement:
    """Return the measurement if the run succeeded and wrote ``size`` bytes (None: nothing to write)."""
    command = shlex.join(measured.command)
    if measured.exit_code != 0:
        tail = "\n".join(measured.stderr.splitlines()[-ERROR_LINES:])
        raise BenchmarkError(f"exit code {measured.exit_code}: {command}\n{tail}")
    if size is None:
        return measured
    if not out.exists():
        raise BenchmarkError(f"no output {out}: {command}")
    plain = out.is_file() and out.suffix != ".safetensors"
    found = out.stat().st_size if plain else models.tensor_bytes(out)
    if found != size:
        raise BenchmarkError(f"{out}: expected {size} bytes, got {found}: {command}")
    return measured


def commands(case: Case, folders: Sequence[Path], data: Path, output_bytes: int) -> dict[str, tuple[list[str], Path]]:
    """Command and output of everything that a round runs, by name."""
    base, *fine_tunes = folders
    used = folders if case.base else fine_tunes
    files = [str(file) for model in used for file in models.weight_files(model)]
    root = base.parent
    floor = [sys.executable, str(FLOOR), "--out", str(root / "floor.bin"), "--bytes", str(output_bytes)]
    own = [sys.executable, "-m", "stockpot", case.command, *shlex.split(case.options)]
    own += [*(["--base", str(base)] if case.base else []), *map(str, fine_tunes)]
    own += [*(["--out", str(root / "out")] if case.command == "merge" else []), "--quiet", "--json"]
    found = {
        "floor": ([*floor, "--reads", str(case.reads), *files], root / "floor.bin"),
        "stockpot": (own, root / "out"),
    }
    if case.plan:
        found["plan"] = ([*own, "--dry-run"], root / "plan")
    if case.mergekit is not None:
        recipe = root / "mergekit.yaml"
        others.write_recipe(recipe, case.mergekit, base if case.base else None, fine_tunes)
        program = str(others.mergekit(data))
        # It has no option to leave a tokenizer alone that is not there but this one.
        found["mergekit"] = ([program, str(recipe), str(root / "theirs"), "--no-copy-tokenizer"], root / "theirs")
    return found


def bench(name: str, given: argparse.Namespace, console: Console) -> report.Result:
    """Run all rounds of one case."""
    case = CASES[name]
    console.print(f"{name}: models", style="dim")
    folders = models.ensure(case.entry, given.data, case.scale, case.fine_tunes)
    writes = case.command == "merge"
    output_bytes = ENTRIES[case.entry].model_bytes(case.scale) if writes else 0
    files = [file for model in folders[not case.base :] for file in models.weight_files(model)]
    input_bytes = sum(file.stat().st_size for file in files)
    fits = input_bytes + 2 * output_bytes < report.memory_bytes("MemAvailable")
    programs = commands(case, folders, given.data, output_bytes)
    if given.no_mergekit:
        programs.pop("mergekit", None)
    partial = folders[0].with_name("out.partial")
    outputs = [*(out for _, out in programs.values()), partial]

    def run(which: str) -> measure.Measurement:
        command, out = programs[which]
        if case.cold:
            measure.drop(files)
        elif fits:
            measure.warm(files)
        nothing = which == "plan" or (which == "stockpot" and not writes)
        return checked(measure.run(command, outputs=outputs), out, None if nothing else output_bytes)

    rounds = []
    try:
        for number in range(given.repeats + 1):
            console.print(f"{name}: round {number} of {given.repeats}", style="dim")
            load = os.getloadavg()[0]
            # The slow ones need no warming up.
            names = [which for which in programs if number or which != "mergekit"]
            rounds.append(report.Round({which: run(which) for which in names}, load))
    finally:
        for path in outputs:
            measure.remove(path)
    warm_up, *counted = rounds
    return report.Result(name, case, fits, input_bytes, output_bytes, warm_up, tuple(counted))


def main() -> int:
    """Run the chosen cases; print and store each result."""
    given = arguments()
    given.data = given.data.resolve()
    console, notes = Console(), Console(stderr=True)
    given.out.mkdir(parents=True, exist_ok=True)
    say: Callable[[str], None] = notes.print
    for name in given.cases or CASES:
        try:
            result = bench(name, given, notes)
        except (BenchmarkError, subprocess.CalledProcessError) as error:
            say(f"benchmarks: error: {name}: {error}")
            return 1
        case = CASES[name]
        places = {
            str(given.data / models.key(case.entry, case.scale, case.fine_tunes)): "DATA",
            str(given.data): "ENVIRONMENTS",
            str(FLOOR): "benchmarks/floor.py",
            sys.executable: "python",
        }
        report.store(result, places, given.out)
        report.show(console, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
