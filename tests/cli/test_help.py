"""What the program says of itself: help, version, the catalogue of methods; and how fast."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ._kitchen import Kitchen, Program

COMMANDS = (
    "merge",
    "verify",
    "soup",
    "wise-ft",
    "evaluate",
    "ensemble",
    "geometry",
    "landscape",
    "barrier",
    "collect",
    "methods",
    "demo",
)
HEAVY = ("torch", "numpy", "safetensors", "pydantic", "yaml", "xxhash", "huggingface_hub", "matplotlib", "sklearn")


def process(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the program as a process."""
    command = [sys.executable, "-m", "stockpot", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=cwd)


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help(command: tuple[str, ...], option: str, program: Program) -> None:
    """Every command explains itself and exits 0."""
    outcome = program.does(*command, option)
    assert "Usage" in outcome.out
    assert outcome.err == ""
    for name in command or COMMANDS:
        assert name in outcome.out


def test_help_is_fast_and_loads_nothing_heavy() -> None:
    """``stockpot --help`` takes under half a second of processor time, and imports neither torch nor its like."""
    code = (
        "import sys\n"
        "from stockpot.cli import main\n"
        "assert main(['--help']) == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stderr.strip() == "[]"
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert process("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    # The least of three, since the machine does other things too.
    assert min(times) < 0.5


def test_import_is_fast() -> None:
    """``import stockpot`` loads nothing heavy."""
    code = f"import sys, stockpot; print([name for name in {HEAVY!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


def test_dry_run_loads_no_torch(kitchen: Kitchen) -> None:
    """A plan is made from headers alone; torch is not needed for it."""
    arguments = [str(word) for word in kitchen.stock()[2:]]
    code = (
        "import sys, stockpot\n"
        "from stockpot.recipe import Recipe\n"
        "models = [{'model': name} for name in sys.argv[2:4]]\n"
        "data = {'merge_method': 'model_stock', 'base_model': sys.argv[1], 'models': models}\n"
        "assert stockpot.plan(Recipe.from_data(data), out='out').passes == 1\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, *arguments[2:5]], check=True, timeout=60, cwd=kitchen.root)


def test_version(program: Program) -> None:
    """``--version`` prints name and number."""
    import stockpot

    assert program.does("--version").out == f"stockpot {stockpot.__version__}\n"


def test_methods_lists_all(program: Program) -> None:
    """The catalogue names every method."""
    from stockpot.methods import all_methods

    outcome = program.does("methods")
    for name, method in all_methods().items():
        assert name in outcome.out
        assert method.summary.split(":")[0][:30] in outcome.out


@pytest.mark.parametrize("name", ["linear", "model_stock", "model-stock", "slerp", "task_arithmetic", "wise_ft"])
def test_methods_explains_one(name: str, program: Program) -> None:
    """A method's page has its parameters, its reference, and what its inputs are."""
    outcome = program.does("methods", name)
    for word in (name.replace("-", "_"), "models:", "base:", "reference:"):
        assert word in outcome.out


def test_methods_as_json(program: Program) -> None:
    """``methods --json`` is one object; of one method, a list of one."""
    from stockpot.methods import all_methods

    data = program.does("methods", "--json").data
    assert (data["command"], data["status"], data["warnings"]) == ("methods", "done", [])
    assert [entry["name"] for entry in data["methods"]] == list(all_methods())
    (one,) = program.does("methods", "model_stock", "--json").data["methods"]
    assert one["base"] == "required"
    assert set(one["parameters"]) >= {"negative", "norms", "granularity"}


def test_a_merge_loads_nothing_of_soups(kitchen: Kitchen) -> None:
    """What only evaluations and pages need is not waited for."""
    code = (
        "import sys\n"
        "from stockpot.cli import main\n"
        f"assert main({[str(word) for word in kitchen.soup('--quiet')]!r}) == 0\n"
        "heavy = ('sqlite3', 'stockpot.soups', 'stockpot.evaluate', 'matplotlib', 'torch')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"
