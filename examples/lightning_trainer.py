"""Averages while training, in a Lightning Trainer; ten seconds on a laptop.

pip install 'stockpot[lightning,demo]'
python examples/lightning_trainer.py                # one run, validated and saved as its SWA, BatchNorm estimated anew
python examples/lightning_trainer.py --replicas 3   # three replicas in turn, Model Stock after every second epoch
"""

import argparse

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stockpot.train import SWA, Schedule
from stockpot.train.lightning import AverageCallback, PeriodicStockCallback


class Digits(pl.LightningModule):
    """A small convolutional network; its learning rate falls over the steps of one replica."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
        )  # fmt: skip

    def forward(self, images):
        return self.layers(images)

    def training_step(self, batch, _):
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def validation_step(self, batch, _):
        images, labels = batch
        self.log("accuracy", 100 * (self(images).argmax(dim=1) == labels).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.hparams.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}


def digits(first, last, **options):
    """Some of scikit-learn's handwritten digits."""
    images, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(images[first:last]).float().reshape(-1, 1, 8, 8) / 16
    return DataLoader(TensorDataset(images, torch.from_numpy(labels[first:last])), batch_size=32, **options)


def main() -> None:
    """Train, validate, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=1, help="1: the SWA of one run")
    parser.add_argument("--epochs", type=int, default=6, help="of each replica")
    parser.add_argument("--out", default="lightning-trainer")
    parser.add_argument("--resume", help="a checkpoint to go on from")
    given = parser.parse_args()
    pl.seed_everything(0)
    train, test = digits(0, 600, shuffle=True), digits(600, 1797)
    if given.replicas == 1:
        schedule = Schedule(every=1, unit="epoch", warm_up=given.epochs // 2)
        callback = AverageCallback(SWA, schedule, batches=train)
    else:
        callback = PeriodicStockCallback(Schedule(every=2, unit="epoch"), replicas=given.replicas)
    trainer = pl.Trainer(
        max_epochs=given.epochs * given.replicas, accelerator="cpu", logger=False, enable_progress_bar=False,
        callbacks=[callback, ModelCheckpoint(given.out, filename="{epoch}", save_top_k=-1)],
    )  # fmt: skip
    model = Digits(given.epochs * len(train))
    trainer.fit(model, train, test, ckpt_path=given.resume)
    trainer.save_checkpoint(f"{given.out}/final.ckpt", weights_only=True)
    print(f"{trainer.validate(model, test, verbose=False)[0]['accuracy']:.2f} per cent")
    if given.replicas > 1:
        for merge in callback.stock.merges:
            ratios = [ratio for ratio in merge.ratios.values() if ratio is not None]
            print(f"  merge after epoch {merge.at}: mean ratio {sum(ratios) / len(ratios):.3f}")


if __name__ == "__main__":
    main()
