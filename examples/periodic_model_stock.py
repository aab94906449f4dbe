"""Model Stock while training, in a plain PyTorch loop; a minute on a laptop.

    pip install 'stockpot[demo]'
    python examples/periodic_model_stock.py

A small network learns noisy digits, and is fine-tuned on a few clean ones: once, three times merged at the end, and
three times merged after every epoch. Read on 1,000 digits that none has seen: clean, and as noisy as the first ones.
"""

import argparse
import copy

import torch
from sklearn.datasets import load_digits
from torch import nn

import stockpot
from stockpot.train import EMA, InTurn, PeriodicStock, Schedule

EPOCHS, REPLICAS = 10, 3


def network() -> nn.Module:
    """Digits of 8 x 8 pixels in, ten scores out."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), nn.GroupNorm(4, 24), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(24, 48, 3, padding=1), nn.GroupNorm(4, 48), nn.ReLU(), nn.Flatten(), nn.Linear(48 * 16, 10),
    )  # fmt: skip


def noisy(images, drawn):
    """Half of it noise."""
    return images + 0.5 * torch.randn(images.shape, generator=drawn)


def train_epoch(model, optimizer, images, labels, seed, change=None):
    """One pass in an order of its own."""
    drawn = torch.Generator().manual_seed(seed)
    for batch in torch.randperm(len(labels), generator=drawn).split(25):
        shown = images[batch] if change is None else change(images[batch], drawn)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(shown), labels[batch]).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model, images, labels):
    """Per cent."""
    return 100 * (model(images).argmax(dim=1) == labels).float().mean().item()


def finetuned(base, images, labels, seed, average=None):
    """The usual way: one run from the base."""
    model = copy.deepcopy(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    ema = average(model) if average else None
    for epoch in range(EPOCHS):
        train_epoch(model, optimizer, images, labels, seed=1000 * seed + epoch)
        if ema is not None and epoch >= EPOCHS // 2:
            ema.update()
    if ema is not None:
        model.load_state_dict({**model.state_dict(), **ema.weights()})
    return model


def periodically_merged(base, images, labels, seeds):
    """Replicas of one model, merged after every epoch."""
    model = copy.deepcopy(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    stock = PeriodicStock(InTurn(model, optimizer, count=len(seeds)), Schedule(every=1, unit="epoch", until=EPOCHS))
    while not stock.is_finished:
        train_epoch(model, optimizer, images, labels, seed=1000 * seeds[stock.replica] + stock.epochs)
        stock.epoch_end()
    return model


def main() -> None:
    """Train, merge, read."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="repetitions, each with seeds of its own")
    runs = parser.parse_args().runs
    pictures, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pictures).float().reshape(-1, 1, 8, 8) / 16
    labels = torch.from_numpy(labels)
    test = noisy(images[:1000], torch.Generator().manual_seed(0))
    table = {}
    for run in range(runs):
        torch.manual_seed(run)
        base = network()
        optimizer = torch.optim.AdamW(base.parameters(), lr=2e-3)
        for epoch in range(EPOCHS):
            train_epoch(base, optimizer, images[1000:], labels[1000:], seed=run * 100 + epoch, change=noisy)
        few, their_labels = images[1000:1200], labels[1000:1200]
        seeds = [REPLICAS * run + number for number in range(REPLICAS)]
        models = [finetuned(base, few, their_labels, seed) for seed in seeds]
        states = [model.state_dict() for model in models]
        found = {"base": [base], "fine-tunes": models}
        found["EMA of one"] = [finetuned(base, few, their_labels, seeds[0], lambda model: EMA(model, 0.5))]
        for method, own in (("linear", None), ("model_stock", base.state_dict())):
            merged = copy.deepcopy(base)
            merged.load_state_dict(stockpot.merge_state_dicts(method, base=own, models=states))
            found[f"{method} at the end"] = [merged]
        found["model_stock every epoch"] = [periodically_merged(base, few, their_labels, seeds)]
        for name, own in found.items():
            for model in own:
                scores = accuracy(model, images[:1000], labels[:1000]), accuracy(model, test, labels[:1000])
                table.setdefault(name, []).append(scores)
    print(f"{'mean of ' + str(runs) + ' runs':28s}{'clean':>8s}{'noisy':>8s}")
    for name, scores in table.items():
        clean, shifted = torch.tensor(scores).mean(dim=0).tolist()
        print(f"{name:28s}{clean:8.2f}{shifted:8.2f}")


if __name__ == "__main__":
    main()
