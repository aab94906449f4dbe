"""`python -m benchmarks`: time stockpot against the floor, on the same inputs.

For each benchmark: build its models unless they are there, run one uncounted
round, then ``--repeats`` rounds of floor and stockpot in turn. A target that is
missed is printed and leaves the exit status 0; a run that fails or writes the wrong
number of bytes ends the benchmark with exit status 1.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import measure, models, report
from benchmarks.shapes import ENTRIES

ROOT = Path(__file__).parents[1]
FLOOR = Path(__file__).with_name("floor.py")
STOCKPOT = (
    "{python} -m stockpot merge --method model_stock --base {base} {models} --out {out} --overwrite --quiet --json"
)
ERROR_LINES = 10


class BenchmarkError(Exception):
    """A run failed, or its output is not what it should be."""


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, default=ROOT / ".bench", help="where the models are")
    add("--repeats", type=int, default=3, help="counted rounds (default 3)")
    add("--scale", type=float, default=1.0, help="fraction of the model size")
    add("--only", action="append", choices=list(ENTRIES), help="repeatable")
    add("--out", type=Path, default=Path(__file__).with_name("results"))
    add("--cold", action="store_true", help="drop the inputs from the cache instead")
    add(
        "--command",
        default=STOCKPOT,
        help="what to time; {python}, {base}, {models}, {out} are filled in",
    )
    given = parser.parse_args()
    if given.repeats < 1 or not 0 < given.scale <= 1:
        parser.error("--repeats must be at least 1 and --scale in (0, 1]")
    return given


def fill(template: str, base: Path, fine_tunes: Sequence[Path], out: Path) -> list[str]:
    """The command of a template as an argument list."""
    values = {"{python}": sys.executable, "{base}": str(base), "{out}": str(out)}
    command: list[str] = []
    for word in shlex.split(template):
        if word == "{models}":
            command += map(str, fine_tunes)
            continue
        for mark, value in values.items():
            word = word.replace(mark, value)
        command.append(word)
    return command


def checked(measured: measure.Measurement, out: Path, size: int) -> measure.Measurement:
    """Return the measurement if the run succeeded and wrote ``size`` bytes."""
    command = shlex.join(measured.command)
    if measured.exit_code != 0:
        tail = "\n".join(measured.stderr.splitlines()[-ERROR_LINES:])
        raise BenchmarkError(f"exit code {measured.exit_code}: {command}\n{tail}")
    if not out.exists():
        raise BenchmarkError(f"no output {out}: {command}")
    plain = out.is_file() and out.suffix != ".safetensors"
    found = out.stat().st_size if plain else models.tensor_bytes(out)
    if found != size:
        raise BenchmarkError(f"{out}: expected {size} bytes, got {found}: {command}")
    return measured


def bench(name: str, given: argparse.Namespace, console: Console) -> report.Result:
    """Run all rounds of one benchmark."""
    console.print(f"{name}: models", style="dim")
    base, *fine_tunes = models.ensure(name, given.data, given.scale)
    files = [file for model in (base, *fine_tunes) for file in models.weight_files(model)]
    output_bytes = ENTRIES[name].model_bytes(given.scale)
    input_bytes = sum(file.stat().st_size for file in files)
    fits = input_bytes + 2 * output_bytes < report.memory_bytes("MemAvailable")
    out, floor_out = base.with_name("out"), base.with_name("floor.bin")
    outputs = [out, floor_out, base.with_name("out.partial")]
    floor = [sys.executable, str(FLOOR), "--out", str(floor_out)]
    floor += ["--bytes", str(output_bytes), *map(str, files)]
    subject = fill(given.command, base, fine_tunes, out)

    def run(command: list[str], target: Path) -> measure.Measurement:
        if given.cold:
            measure.drop(files)
        elif fits:
            measure.warm(files)
        return checked(measure.run(command, outputs=outputs), target, output_bytes)

    rounds = []
    try:
        for number in range(given.repeats + 1):
            console.print(f"{name}: round {number} of {given.repeats}", style="dim")
            load = os.getloadavg()[0]
            rounds.append(report.Round(run(floor, floor_out), run(subject, out), load))
    finally:
        for path in outputs:
            measure.remove(path)
    warm_up, *counted = rounds
    own = given.command == STOCKPOT
    suffix = ("-cold" if given.cold else "") + ("" if own else "-command")
    return report.Result(
        name=models.key(name, given.scale) + suffix,
        subject="stockpot" if own else "command",
        cache="cold" if given.cold else "warm",
        fits_memory=fits,
        input_bytes=input_bytes,
        output_bytes=output_bytes,
        warm_up=warm_up,
        rounds=tuple(counted),
    )


def main() -> int:
    """Run the chosen benchmarks; print and store each result."""
    given = arguments()
    given.data = given.data.resolve()
    console, notes = Console(), Console(stderr=True)
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.only or [n for n, entry in ENTRIES.items() if entry.default]:
        try:
            result = bench(name, given, notes)
        except (BenchmarkError, subprocess.CalledProcessError) as error:
            print(f"benchmarks: error: {name}: {error}", file=sys.stderr)
            return 1
        places = {
            str(given.data / models.key(name, given.scale)): "DATA",
            str(FLOOR): "benchmarks/floor.py",
            sys.executable: "python",
        }
        path = given.out / f"{result.name}.json"
        path.write_text(json.dumps(report.record(result, places), indent=2) + "\n")
        report.show(console, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
