"""Hub ids on the command line: what is refused is told in one line, and the token is nowhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tests.checkpoint._hub_models import plain
from tests.checkpoint._hub_stub import TOKEN, Fault, Hub, serving

from ._kitchen import PREFIX, Outcome, check_error, check_object, snapshot

PATIENCE_SECONDS = 60


@dataclass
class Kitchen:
    """A hub, and the program in processes of its own that look for it."""

    hub: Hub
    place: Path

    @property
    def variables(self) -> dict[str, str]:
        """What the library is told."""
        own = {
            "HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.place / "home"), "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        }  # fmt: skip
        return {**os.environ, **own}

    def run(self, *arguments: object, variables: Mapping[str, str] | None = None, code: int = 0) -> Outcome:
        """To its end."""
        found = subprocess.run(
            [sys.executable, "-m", "stockpot", *map(str, arguments)], capture_output=True, text=True, cwd=self.place,
            env={**self.variables, **(variables or {})}, timeout=PATIENCE_SECONDS, check=False,
        )  # fmt: skip
        assert found.returncode == code, found.stderr
        assert TOKEN not in found.stdout + found.stderr
        return Outcome(found.returncode, found.stdout, found.stderr)

    def refuses(
        self, *arguments: object, kind: str, says: Sequence[str], variables: Mapping[str, str] | None = None
    ) -> None:
        """Exit 2, a first line that says these words, one object; all that -v adds comes before."""
        found = self.run(*arguments, "--json", "-v", variables=variables, code=2)
        told = Outcome(2, found.out, found.err[found.err.index(PREFIX) :])
        check_error(told, 2, says)
        check_object(told, kind, str(arguments[0]))
        assert not any(TOKEN in str(found) for found in snapshot(self.place).values())


@pytest.fixture
def kitchen(tmp_path: Path) -> Iterator[Kitchen]:
    """Two models on the hub."""
    pytest.importorskip("huggingface_hub")
    with serving() as hub:
        for number in range(2):
            hub.add(f"org/m{number}", plain(number))
        yield Kitchen(hub, tmp_path)


LINEAR = ("merge", "--method", "linear", "--out", "out")


@dataclass(frozen=True)
class Case:
    """Models, what goes wrong, and what is said of it."""

    models: tuple[str, ...]
    kind: str
    says: tuple[str, ...]
    fault: Fault | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


def _meets(status: int, code: str = "") -> Fault:
    return Fault("/api/models/org/m1", status=status, headers={"X-Error-Code": code} if code else {})


BOTH = ("org/m0", "org/m1")
CASES = {
    "neither path nor id": Case(
        ("org/m0", "org/gone"), "not_found", ("no such path, and no model of this Hub id", "org/gone", "hf auth login")
    ),
    "no such revision": Case(
        ("org/m0", "org/m1@v9"), "not_found", ("the model has no such revision", "org/m1@v9", "what follows the @")
    ),
    "gated": Case(
        BOTH, "unreadable", ("the model is gated", "org/m1", "got 403", "accept its licence on the model's page"),
        _meets(403, "GatedRepo"),
    ),
    "not logged in": Case(BOTH, "unreadable", ("the hub refused the login", "got 401", "HF_TOKEN"), _meets(401)),
    "no right": Case(
        BOTH, "unreadable", ("the hub refused access", "got 403", "accept the licence", "log in"), _meets(403)
    ),
    "too many requests": Case(BOTH, "hub", ("failed to answer", "got 429", "wait some minutes"), _meets(429)),
    "a hub that is down": Case(BOTH, "hub", ("no such path, and", "got 503", "try again later"), _meets(503)),
    "a header cut short": Case(
        BOTH, "hub", ("ended before it was whole", "org/m1/model.safetensors"), Fault("/store/org/m1", keep=10)
    ),
    "no network": Case(
        BOTH, "hub", ("the hub cannot be reached", "127.0.0.1:9", "HF_ENDPOINT"), None,
        {"HF_ENDPOINT": f"http://user:{TOKEN}@127.0.0.1:9"},
    ),
    "offline, an empty cache": Case(
        BOTH, "not_found", ("no such path, and no such Hub id in the cache", "org/m0", "HF_HUB_OFFLINE"), None,
        {"HF_HUB_OFFLINE": "1"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_the_hub_refuses_is_told(case: str, kitchen: Kitchen) -> None:
    """Exit 2, what, where, got and remedy in one line; no weights were asked for, nothing was written."""
    own = CASES[case]
    kitchen.hub.faults += [own.fault] if own.fault else []
    kitchen.refuses(*LINEAR, *own.models, kind=own.kind, says=own.says, variables=own.variables)
    assert kitchen.hub.whole() == []
    assert not [path.name for path in kitchen.place.iterdir() if path.name.startswith("out")]
    if "HF_HUB_OFFLINE" in own.variables:
        assert kitchen.hub.log == []


def test_a_mismatch_is_told_before_the_download(kitchen: Kitchen) -> None:
    """Headers are enough to refuse."""
    kitchen.hub.add("org/m1", {"model.safetensors": safetensors.torch.save({"other": torch.zeros(100_000)})})
    kitchen.refuses(*LINEAR, *BOTH, kind="missing_tensor", says=["org/m1"])
    assert kitchen.hub.whole() == []
    assert kitchen.hub.sent() < 256 << 10


def test_a_dry_run_downloads_no_weights(kitchen: Kitchen) -> None:
    """It says how much a merge would download."""
    found = kitchen.run(*LINEAR, *BOTH, "--dry-run")
    assert "downloads" in found.out
    size = 2 * len(plain(0)["model.safetensors"])
    again = kitchen.run(*LINEAR, *BOTH, "--dry-run", "--json")
    assert size < again.data["bytes_to_download"] < size + 1000
    assert kitchen.hub.whole() == []


def test_a_merge_and_its_proof(kitchen: Kitchen) -> None:
    """Online, then from the cache alone; the token is in no file and no message."""
    first = kitchen.run(*LINEAR, *BOTH)
    assert "stockpot: downloading 615 kB from the hub" in first.err
    assert first.out == ""
    kitchen.hub.log.clear()
    again = kitchen.run(
        "merge", "--method", "linear", "--out", "again", *BOTH, "--json", variables={"HF_HUB_OFFLINE": "1"}
    )
    assert kitchen.hub.log == []
    assert again.data["status"] == "done"
    assert len(again.err.splitlines()) == 1
    peak = json.loads((kitchen.place / "out" / "stockpot_run.json").read_text())["peak_memory_bytes"]
    stated = kitchen.run(*LINEAR, *BOTH, "--dry-run", "--json", "--overwrite").data["peak_memory_bytes"]
    assert peak < stated
    kitchen.hub.add("org/m1", plain(5))
    proof = kitchen.run("verify", "out", "--recompute", "1", "--json")
    assert proof.data["recomputed"] == 3
    assert "org/m1: means commit" in proof.data["warnings"][0]
    files = [path for path in kitchen.place.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


def test_quiet_says_nothing(kitchen: Kitchen) -> None:
    """No message, no bar of the library's."""
    found = kitchen.run(*LINEAR, *BOTH, "--quiet")
    assert (found.out, found.err) == ("", "")


def test_without_the_library(kitchen: Kitchen) -> None:
    """Not installed: the error says what to install."""
    absent = kitchen.place / "absent"
    (absent / "huggingface_hub").mkdir(parents=True)
    (absent / "huggingface_hub" / "__init__.py").write_text("raise ImportError('not here')")
    path = os.pathsep.join([str(absent), os.environ.get("PYTHONPATH", "")])
    kitchen.refuses(
        *LINEAR, *BOTH, kind="not_found", says=["huggingface_hub", "pip install 'stockpot[hub]'"],
        variables={"PYTHONPATH": path},
    )  # fmt: skip
