"""Averages while training, in a loop with Accelerate; ten seconds on a laptop.

    pip install 'stockpot[trainer,demo]'
    python examples/accelerate_loop.py                  # one run and its EMA; under `accelerate launch`, too
    python examples/accelerate_loop.py --replicas 3     # three replicas in turn, Model Stock every 50 steps
    python examples/accelerate_loop.py --resume         # go on from what was saved last (batches are drawn anew)

Averages and PeriodicStock have state_dict() and load_state_dict(): register_for_checkpointing() takes them as they are.
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stockpot.train import EMA, InTurn, PeriodicStock, Schedule


def digits(first, last, **options):
    """Some of scikit-learn's handwritten digits."""
    images, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(images[first:last]).float() / 16
    return DataLoader(TensorDataset(images, torch.from_numpy(labels[first:last])), batch_size=32, **options)


def endless(loader):
    """Its batches, again and again."""
    while True:
        yield from loader


@torch.no_grad()
def accuracy(accelerator, model, loader):
    """Per cent, over all processes."""
    model.eval()
    right = [accelerator.gather_for_metrics(model(images).argmax(dim=1) == labels) for images, labels in loader]
    model.train()
    return 100 * torch.cat(right).float().mean().item()


def main() -> None:
    """Train, evaluate, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=1, help="1: the EMA of one run")
    parser.add_argument("--steps", type=int, default=200, help="of each replica")
    parser.add_argument("--out", default="accelerate-loop")
    parser.add_argument("--resume", action="store_true", help="go on from what was saved there")
    given = parser.parse_args()
    accelerator = Accelerator(cpu=True)
    set_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(128), nn.GELU(), nn.Dropout(0.2), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=given.steps)
    train, test = digits(0, 600, shuffle=True), digits(600, 1797)
    model, optimizer, train, test = accelerator.prepare(model, optimizer, train, test)
    if given.replicas == 1:
        average = EMA(model, decay=0.98, warm_up=True)
        accelerator.register_for_checkpointing(average, rates)
    else:
        schedule = Schedule(every=50, unit="step", until=given.steps)
        stock = PeriodicStock(InTurn(model, optimizer, count=given.replicas, extras=[rates]), schedule)
        accelerator.register_for_checkpointing(stock, rates)
    if given.resume:
        accelerator.load_state(given.out)
    batches = endless(train)

    def step():
        images, labels = next(batches)
        optimizer.zero_grad()
        accelerator.backward(nn.functional.cross_entropy(model(images), labels))
        optimizer.step()
        rates.step()

    if given.replicas == 1:
        while average.count < given.steps:
            step()
            average.update()
            if average.count == given.steps // 2:
                accelerator.save_state(given.out)
        with average.swap():
            accelerator.print(f"{accuracy(accelerator, model, test):.2f} per cent, as the average")
            accelerator.save_model(model, str(Path(given.out) / "final"))
        accelerator.print(f"{accuracy(accelerator, model, test):.2f} per cent, as the run ended")
        return
    while not stock.is_finished:
        step()
        if merge := stock.step():
            accelerator.save_state(given.out)
            ratios = [ratio for ratio in merge.ratios.values() if ratio is not None]
            accelerator.print(f"merge at step {merge.at}: mean ratio {sum(ratios) / len(ratios):.3f}")
    accelerator.save_model(model, str(Path(given.out) / "final"))
    accelerator.print(f"{accuracy(accelerator, model, test):.2f} per cent")


if __name__ == "__main__":
    main()
