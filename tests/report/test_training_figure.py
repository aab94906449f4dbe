"""The figure of merges while training."""

import json

import numpy as np
import torch
from tests.train import _runs as runs

from stockpot.report import save_pictures, training_pictures
from stockpot.train import InTurn, PeriodicStock, Schedule


def merges():
    """Of a short run."""
    model = runs.made("plain")
    optimizer = runs.OPTIMIZERS["adamw"](model)
    stock = PeriodicStock(InTurn(model, optimizer, count=2), Schedule(4, "step", until=16))
    while not stock.is_finished:
        runs.train_step(model, optimizer, stock.replica, stock.steps)
        stock.step()
    return stock.merges


def test_quartiles_by_kind_at_every_merge(tmp_path):
    """The data beside the drawing are those of the records, and the files are the same each time."""
    found = merges()
    written = save_pictures(training_pictures(found), tmp_path / "one")
    assert sorted(path.name for path in written) == [f"training.{kind}" for kind in ("json", "pdf", "png", "svg")]
    data = json.loads((tmp_path / "one" / "training.json").read_text())
    assert data["at"] == [4, 8, 12, 16]
    assert data["unit"] == "step"
    last = found[-1].geometry
    for kind, values in data["kinds"].items():
        own = [t for t, one in zip(last.t, last.kinds, strict=True) if one == kind]
        np.testing.assert_allclose(values["ratio"][-1], np.quantile(own, (0.25, 0.5, 0.75)), rtol=1e-12)
    save_pictures(training_pictures(found), tmp_path / "two")
    for path in written:
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_nothing_to_draw():
    """No merge, no figure; tensors that never moved are no point."""
    assert training_pictures([]) == []
    model = runs.made("plain")
    stock = PeriodicStock(InTurn(model, count=2), Schedule(1, until=1))
    while not stock.is_finished:
        with torch.no_grad():
            model[0].weight += 0.1 * (1 + stock.replica)
        stock.epoch_end()
    (picture,) = training_pictures(stock.merges)
    assert picture.data["kinds"]["bias"]["ratio"] == [None]
    assert picture.data["kinds"]["weight"]["ratio"] != [None]
    picture.draw(picture.data)
