"""Small training runs: the same one by PeriodicStock and by hand."""

import copy

import torch
from torch import nn

import stockpot

BATCH, WIDTH, CLASSES = 12, 6, 4


class Tied(nn.Module):
    """An embedding that is also the head."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, 5)
        self.body = nn.Linear(WIDTH, 5)
        self.head = nn.Linear(5, CLASSES, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


def plain():
    return nn.Sequential(nn.Linear(WIDTH, 9), nn.GELU(), nn.LayerNorm(9), nn.Linear(9, CLASSES))


def with_batch_norm():
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))


def partly_frozen():
    model = plain()
    model[0].weight.requires_grad_(False)
    model[0].bias.requires_grad_(False)
    return model


def in_bfloat16():
    return plain().to(torch.bfloat16)


MODELS = {"plain": plain, "batch norm": with_batch_norm, "frozen": partly_frozen, "tied": Tied, "bfloat16": in_bfloat16}
OPTIMIZERS = {
    "adamw": lambda model: torch.optim.AdamW(asking(model), lr=0.02),
    "sgd": lambda model: torch.optim.SGD(asking(model), lr=0.05, momentum=0.9),
}


def asking(model):
    """Parameters that ask for gradients."""
    return [own for own in model.parameters() if own.requires_grad]


def made(name, seed=0):
    """A model with weights of that seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name]()


def batch(seed, step, dtype):
    """Data of one replica at one step."""
    drawn = torch.Generator().manual_seed(1000 * seed + step)
    x = torch.randn(BATCH, WIDTH, generator=drawn)
    return x.to(dtype), (x[:, :CLASSES] + 0.3 * torch.randn(BATCH, CLASSES, generator=drawn)).argmax(dim=1)


def train_step(model, optimizer, seed, step, *, accumulate=1, mixed=False):
    """One optimizer step, from ``accumulate`` batches; ``mixed``: in bfloat16 where autocast says so."""
    optimizer.zero_grad()
    dtype = next(iter(model.parameters())).dtype
    for part in range(accumulate):
        x, labels = batch(seed, step * accumulate + part, dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            answers = model(x)
        (nn.functional.cross_entropy(answers.float(), labels) / accumulate).backward()
    optimizer.step()


def schedule_of(optimizer):
    """Rates that fall all the way."""
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)


def by_hand(name, make, seeds, merges, *, accumulate=1, mixed=False, reset=False, **options):
    """N models of their own, merged and loaded at each of those steps.

    Returns (weights, anchor, [(replicas, merged) of each merge]).
    """
    anchor = copy.deepcopy(made(name))
    models = [made(name) for _ in seeds]
    optimizers = [make(model) for model in models]
    schedules = [schedule_of(optimizer) for optimizer in optimizers]
    step, seen = 0, []
    for stop in merges:
        for model, optimizer, schedule, seed in zip(models, optimizers, schedules, seeds, strict=True):
            for number in range(step, stop):
                train_step(model, optimizer, seed, number, accumulate=accumulate, mixed=mixed)
                schedule.step()
        step = stop
        replicas = [{key: value.clone() for key, value in model.state_dict().items()} for model in models]
        merged = stockpot.merge_state_dicts("model_stock", base=anchor.state_dict(), models=replicas, **options)
        seen.append((replicas, merged))
        for model, optimizer in zip(models, optimizers, strict=True):
            model.load_state_dict(merged)
            if reset:
                optimizer.state.clear()
    return models[0].state_dict(), anchor.state_dict(), seen


def same(one, two):
    """Whether two state dicts hold the same bits."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
