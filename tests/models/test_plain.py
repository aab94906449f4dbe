"""Models that no library knows: a deep equilibrium in plain torch; a run of Lightning's own Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
import pytest
import safetensors.torch
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader

import stockpot

from . import _oracle
from ._plain import LONE_FORMS, loaded, same_tensors, seeded, shared, tuned

WIDTH, WORDS, CLASSES = 16, 20, 4
MODELS = 3


class Equilibrium(torch.nn.Module):
    """z = tanh(W z + U x) solved by iterating one layer, whose weights all depths share; words tied to the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(WORDS, WIDTH)
        self.cell = torch.nn.Linear(WIDTH, WIDTH)
        self.inject = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.answer = torch.nn.Linear(WIDTH, WORDS, bias=False)
        self.scale = torch.nn.Parameter(torch.tensor(1.0))
        self.answer.weight = self.embed.weight
        self.register_buffer("steps", torch.tensor(40))
        with torch.no_grad():
            self.cell.weight.mul_(0.5 / torch.linalg.matrix_norm(self.cell.weight, 2))

    def settle(self, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The fixed point, and how far one more step would move it."""
        x = self.inject(self.embed(words))
        z = torch.zeros_like(x)
        for _ in range(int(self.steps)):
            z = torch.tanh(self.cell(z) + x)
        return z, (torch.tanh(self.cell(z) + x) - z).abs().max()

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Scores of the words."""
        return self.scale * self.answer(self.settle(words)[0])


def words_of(generator: torch.Generator) -> torch.Tensor:
    """A batch."""
    return torch.randint(0, WORDS, (8, 6), generator=generator)


def copying(model: Equilibrium, generator: torch.Generator) -> torch.Tensor:
    """The loss of saying the next word of a circle."""
    words = words_of(generator)
    return torch.nn.functional.cross_entropy(model(words).flatten(0, 1), ((words + 1) % WORDS).flatten())


@pytest.fixture(scope="module")
def equilibria() -> list[Equilibrium]:
    """A base and its fine-tunes."""
    base = seeded(Equilibrium, 0)
    return [base, *(tuned(base, copying, 10 + number) for number in range(MODELS))]


@pytest.mark.parametrize("form", LONE_FORMS)
def test_a_deep_equilibrium(form: str, equilibria: list[Equilibrium], tmp_path: Path) -> None:
    """Of a layer that is its own successor and a word table that is its own answer, names and shapes say enough."""
    write, suffix, out_suffix = LONE_FORMS[form]
    files = [tmp_path / f"in{number}{suffix}" for number in range(len(equilibria))]
    for model, file in zip(equilibria, files, strict=True):
        write(model, file)
    out = tmp_path / f"OUT{out_suffix}"
    stockpot.merge("model_stock", base=files[0], models=files[1:], out=out)
    fresh, found = loaded(seeded(Equilibrium, 9), out, form)
    assert shared(fresh.state_dict()) == {frozenset({"embed.weight", "answer.weight"})}
    scores = fresh(words_of(torch.Generator().manual_seed(7)))
    assert bool(torch.isfinite(scores).all())
    assert fresh.settle(words_of(torch.Generator().manual_seed(7)))[1] < 1e-5, "no equilibrium"
    base, *models = (model.state_dict() for model in equilibria)
    merged = stockpot.merge_state_dicts("model_stock", base=base, models=models)
    same_tensors(fresh.state_dict(), merged)
    if out_suffix == ".safetensors":
        assert len(found) == len(merged) - 1
        prefix = "model." if form == "training-state" else ""
        assert _oracle.check_model_stock(out, base, models, prefix=prefix) >= 3


class Trained(pl.LightningModule):
    """A network with BatchNorm under training by Lightning."""

    def __init__(self, rate: float, betas: tuple[float, float], notes: dict[str, str]) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, WIDTH), torch.nn.BatchNorm1d(WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, CLASSES)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of the classes."""
        return self.net(x)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], number: int) -> torch.Tensor:
        """The loss, logged for the callbacks."""
        loss = torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> dict[str, object]:
        """AdamW with a schedule: both are in the checkpoint."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["rate"], betas=self.hparams["betas"])
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)}


def made() -> Trained:
    """A module to be trained."""
    return Trained(2e-2, (0.9, 0.99), {"why": "a test"})


def batches(seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Data of a seed, whose classes are learnable."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(4):
        x = torch.randn(16, WIDTH, generator=generator)
        yield x, x[:, :CLASSES].argmax(1)


def run(base: Trained, folder: Path, seed: int) -> Path:
    """A run of the Trainer from the base's weights; its last checkpoint."""
    module = made()
    module.load_state_dict(base.state_dict())
    kept = ModelCheckpoint(folder, monitor="loss", save_last=True)
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[kept, EarlyStopping("loss")],
    )  # fmt: skip
    trainer.fit(module, DataLoader(list(batches(seed)), batch_size=None))
    return Path(kept.last_model_path)


@pytest.mark.filterwarnings("default")  # the warnings of Lightning are its own
def test_runs_of_lightning(tmp_path: Path) -> None:
    """Checkpoints of real runs, with all that its Trainer keeps beside the weights, merge and load into the module."""
    base = seeded(made, 0)
    torch.save({"state_dict": base.state_dict(), "pytorch-lightning_version": pl.__version__}, tmp_path / "base.ckpt")
    files = [run(base, tmp_path / f"run{seed}", seed) for seed in range(MODELS)]
    content = torch.load(files[0], weights_only=False)
    assert {"callbacks", "hyper_parameters", "lr_schedulers", "loops", "optimizer_states"} <= content.keys()
    out = tmp_path / "OUT.safetensors"
    result = stockpot.merge("model_stock", base=tmp_path / "base.ckpt", models=files, out=out)
    assert "re-estimate" in result.warnings[-1]
    module = made()
    assert safetensors.torch.load_model(module, out) == (set(), [])
    assert bool(torch.isfinite(module.eval()(next(batches(9))[0])).all())
    states = [torch.load(file, weights_only=False)["state_dict"] for file in files]
    assert _oracle.check_model_stock(out, base.state_dict(), states) >= 3
