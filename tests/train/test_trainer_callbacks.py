"""Averages and PeriodicStock inside the trainers people use: Hugging Face's and Lightning's.

Both trainers drive the same small model over the same batches; a recorder notes the weights after every optimizer step.
What the callbacks give is compared with definitions applied to that record.
"""

import functools
from collections import namedtuple

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from safetensors.torch import load_file
from tests.train._runs import same
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import stockpot
from stockpot import errors
from stockpot.train import EMA, SWA, Schedule
from stockpot.train import lightning as in_lightning
from stockpot.train import transformers as in_hf

pytestmark = pytest.mark.filterwarnings("default")  # the trainers' own warnings are theirs; ours are asked for by name

STEPS, WIDTH = 6, 5  # steps of an epoch
CALLBACKS = {"hf": in_hf, "lightning": in_lightning}
Ended = namedtuple("Ended", "weights steps rates shown folder callback")
"""Final weights; weights and learning rate after each step; weights at each evaluation; checkpoints; the callback."""


def data():
    drawn = torch.Generator().manual_seed(7)
    x = torch.randn(8 * STEPS, WIDTH, generator=drawn)
    return TensorDataset(x, (x[:, :3] + 0.5 * torch.randn(x.shape[0], 3, generator=drawn)).argmax(dim=1))


class Shuffled(torch.utils.data.Sampler):
    """Another order each epoch, that a resumed run finds again: Lightning tells it the epoch."""

    def __init__(self, seed=0):
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 8 * STEPS

    def __iter__(self):
        return iter(
            torch.randperm(8 * STEPS, generator=torch.Generator().manual_seed(1000 * self.seed + self.epoch)).tolist()
        )


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 7), nn.BatchNorm1d(7), nn.GELU(), nn.Dropout(0.1), nn.Linear(7, 3))


def state_of(model):
    return {name.removeprefix("layers."): own.clone() for name, own in model.state_dict().items()}


class Net(nn.Module):
    """As the Hugging Face Trainer wants it."""

    def __init__(self):
        super().__init__()
        self.layers = network()

    def forward(self, x, labels=None):
        logits = self.layers(x)
        return {"loss": None if labels is None else nn.functional.cross_entropy(logits, labels), "logits": logits}


class Module(pl.LightningModule):
    """As Lightning wants it."""

    def __init__(self, rates, interval):
        super().__init__()
        self.layers, self.rates, self.interval = network(), rates, interval

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("loss", nn.functional.cross_entropy(self.layers(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        schedule = {"scheduler": self.rates(optimizer), "interval": self.interval, "monitor": "loss"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}


class Killed(Exception):
    """The machine went away."""


def falling(optimizer, steps=2 * STEPS):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)


def constant(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def run_hf(
    folder, callback, *, epochs, every=4, evaluate="epoch", rates=falling, accumulate=1, resume=False, kill=None, **more
):
    steps, seen_rates, shown = [], [], []

    class Recorder(TrainerCallback):
        def on_step_end(self, args, state, control, **given):
            if len(steps) == kill:
                raise Killed
            steps.append(state_of(given["model"]))
            seen_rates.append(given["optimizer"].param_groups[0]["lr"])

        def on_evaluate(self, args, state, control, **given):
            shown.append(state_of(given["model"]))

    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    callbacks = [Recorder(), *([callback] if callback else [])]
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(folder), num_train_epochs=epochs, per_device_train_batch_size=8 // accumulate, use_cpu=True,
            gradient_accumulation_steps=accumulate, eval_strategy=evaluate, save_steps=every,
            report_to="none", disable_tqdm=True, max_grad_norm=0.0,
            **{"save_strategy": "steps", **more},
        ),
        train_dataset=[{"x": x, "labels": label} for x, label in data()],
        eval_dataset=[{"x": x, "labels": label} for x, label in data()],
        optimizers=(optimizer, rates(optimizer) if rates else None), callbacks=callbacks,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return Ended(state_of(model), steps, seen_rates, shown, folder, callback)


def run_lightning(
    folder, callback, *, epochs, every=4, evaluate="epoch", rates=falling, accumulate=1, resume=False, kill=None, **more
):
    steps, seen_rates, shown = [], [], []

    class Recorder(Callback):
        seen = 0

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if len(steps) == kill:
                raise Killed
            if trainer.global_step > self.seen:
                self.seen = trainer.global_step
                steps.append(state_of(pl_module))
                seen_rates.append(trainer.optimizers[0].param_groups[0]["lr"])

        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                shown.append(state_of(pl_module))

    module, seed = Module(rates or falling, more.pop("interval", "step")), more.pop("seed", 0)
    module.layers[3].p = 0.0  # Lightning's checkpoints hold no random state
    last = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)[-1] if resume else None
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        accumulate_grad_batches=accumulate,
        callbacks=[
            Recorder(), *([callback] if callback else []),
            ModelCheckpoint(folder, filename="{step}", every_n_train_steps=every, save_top_k=-1),
        ], **more,
    )  # fmt: skip
    torch.manual_seed(5)
    train = DataLoader(data(), batch_size=8 // accumulate, sampler=Shuffled(seed))
    trainer.fit(module, train, DataLoader(data(), batch_size=8) if evaluate != "no" else None, ckpt_path=last)
    return Ended(state_of(module), steps, seen_rates, shown, folder, callback)


RUNS = {"hf": run_hf, "lightning": run_lightning}


def saved_model(folder, step):
    """The model's weights of that checkpoint, by either trainer."""
    if (file := folder / f"checkpoint-{step}" / "model.safetensors").is_file():
        return {name.removeprefix("layers."): own for name, own in load_file(file).items()}
    found = torch.load(folder / f"step={step}.ckpt", weights_only=False)["state_dict"]
    return {name.removeprefix("layers."): own for name, own in found.items()}


def mean_of(steps, coefficients):
    """In float64, by the definition."""
    return {
        name: sum(k * own[name].double() for k, own in zip(coefficients, steps, strict=True))
        for name in steps[0]
        if steps[0][name].is_floating_point()
    }


def ema(count, decay=0.8):
    own = [1.0]
    for _ in range(count - 1):
        own = [decay * one for one in own] + [1 - decay]
    return own


def close(weights, mean):
    """Whether each element is the mean, rounded."""
    for name, own in mean.items():
        np.testing.assert_allclose(weights[name].double(), own, rtol=2**-23, atol=1e-12, err_msg=name)


@pytest.fixture(params=RUNS)
def name(request):
    return request.param


def test_a_run_is_evaluated_saved_and_left_as_its_average(name, tmp_path):
    """The user adds one callback: training goes as without it; all that comes out is the average."""
    plain = RUNS[name](tmp_path / "plain", None, epochs=2)
    callback = CALLBACKS[name].AverageCallback(lambda model: EMA(model, decay=0.8))
    ended = RUNS[name](tmp_path / "ema", callback, epochs=2)
    assert len(ended.steps) == 2 * STEPS
    assert all(same(one, two) for one, two in zip(plain.steps, ended.steps, strict=True))
    for seen, count in [(ended.shown[0], STEPS), (ended.shown[1], 2 * STEPS), (ended.weights, 2 * STEPS)]:
        close(seen, mean_of(ended.steps[:count], ema(count)))
    for step in (4, 8):
        close(saved_model(ended.folder, step), mean_of(ended.steps[:step], ema(step)))


def test_an_average_by_epochs_with_batch_norm_estimated_anew(name, tmp_path):
    """SWA of the second and third epoch's ends; the running statistics are those of the batches."""
    batches = [x for x, _ in DataLoader(data(), batch_size=8)]
    schedule = Schedule(every=1, unit="epoch", warm_up=2)
    ended = RUNS[name](tmp_path, CALLBACKS[name].AverageCallback(SWA, schedule, batches=batches), epochs=3)
    mean = mean_of([ended.steps[2 * STEPS - 1], ended.steps[3 * STEPS - 1]], [0.5, 0.5])
    running = {key for key in mean if "running" in key}
    close(ended.weights, {key: own for key, own in mean.items() if key not in running})
    layer = nn.Linear(WIDTH, 7)
    layer.load_state_dict({"weight": ended.weights["0.weight"], "bias": ended.weights["0.bias"]})
    seen = [layer(batch).double() for batch in batches]
    expected = torch.stack([own.mean(dim=0) for own in seen]).mean(dim=0).detach()
    np.testing.assert_allclose(ended.weights["1.running_mean"], expected, atol=1e-6)
    # What was evaluated before the first update was the run itself.
    assert same(ended.shown[0], ended.steps[STEPS - 1])


# Lightning begins an epoch's data anew, so that only ends of epochs are resumed to the same bits.
@pytest.mark.parametrize(("name", "kill", "every"), [("hf", 5, 4), ("hf", 8, 6), ("lightning", 8, 6)])
def test_a_killed_run_goes_on_to_the_same_average(name, kill, every, tmp_path):
    """From the checkpoint at step 4, in an epoch, or at 6, its end."""
    make = functools.partial(CALLBACKS[name].AverageCallback, lambda model: EMA(model, decay=0.8))
    whole = RUNS[name](tmp_path / "whole", make(), epochs=2, every=every, evaluate="no")
    with pytest.raises(Killed):
        RUNS[name](tmp_path / "killed", make(), epochs=2, every=every, evaluate="no", kill=kill)
    again = RUNS[name](tmp_path / "killed", make(), epochs=2, every=every, evaluate="no", resume=True)
    assert same(again.steps[-1], whole.steps[-1])
    assert same(again.weights, whole.weights)


def by_hand(steps, anchor, turns, epochs):
    """What the record says of a run in turn with a merge every epoch: [(replicas, merged)], checked at its seams."""
    seen = []
    for epoch in range(epochs):
        ends = [STEPS * (turns * epoch + turn + 1) - 1 for turn in range(turns)]
        replicas = [steps[end] for end in ends]
        merged = stockpot.merge_state_dicts("model_stock", base=anchor, models=replicas)
        seen.append((replicas, merged))
    return seen


@pytest.mark.parametrize("park", ["cpu", "folder"])
def test_replicas_in_turn(name, park, tmp_path):
    """Three replicas of two epochs each, in one Trainer of six: after each round all go on from the merged weights."""
    park = park if park == "cpu" else tmp_path / "parked"
    callback = CALLBACKS[name].PeriodicStockCallback(Schedule(every=1, unit="epoch"), replicas=3, park=park)
    ended = RUNS[name](tmp_path / "run", callback, epochs=6)
    assert len(ended.steps) == 6 * STEPS
    rounds = by_hand(ended.steps, state_of(network()), 3, 2)
    assert [merge.at for merge in callback.stock.merges] == [1, 2]
    assert same(ended.weights, rounds[1][1])
    assert same(ended.shown[2], rounds[0][1])  # evaluated after the merge
    assert same(ended.shown[5], rounds[1][1])
    cosine = [0.01 * (1 + np.cos(np.pi * (step + 1) / (2 * STEPS))) for step in range(2 * STEPS)]
    np.testing.assert_allclose(ended.rates, (cosine[:STEPS] * 3) + (cosine[STEPS:] * 3), atol=1e-12)


def test_steps_taken_in_turn_and_accumulated_gradients(name, tmp_path):
    """Turns by optimizer steps, of two batches each; the trainer is stopped when the last merge is done."""
    callback = CALLBACKS[name].PeriodicStockCallback(Schedule(every=3, unit="step", until=6), replicas=2)
    ended = RUNS[name](tmp_path, callback, epochs=4, accumulate=2)
    assert len(ended.steps) == 12
    assert [merge.at for merge in callback.stock.merges] == [3, 6]
    first = [ended.steps[2], ended.steps[5]]
    anchor = state_of(network())
    merged = stockpot.merge_state_dicts("model_stock", base=anchor, models=first)
    second = stockpot.merge_state_dicts("model_stock", base=anchor, models=[ended.steps[8], ended.steps[11]])
    assert same(ended.weights, second)
    assert not same(merged, second)


@pytest.mark.parametrize(
    ("name", "kill", "every"),
    [("hf", kill, every) for kill, every in [(5, 4), (9, 4), (8, 6), (14, 6), (21, 6), (21, 5)]]
    + [("lightning", kill, 6) for kill in (8, 14, 21)],
)
def test_killed_replicas_go_on_to_the_same_weights(name, kill, every, tmp_path):
    """In the first replica's turn, in the second's, between turns, and after a merge."""
    make = functools.partial(CALLBACKS[name].PeriodicStockCallback, Schedule(every=1, unit="epoch"), replicas=2)
    whole = RUNS[name](tmp_path / "whole", make(), epochs=4, every=every, evaluate="no")
    with pytest.raises(Killed):
        RUNS[name](tmp_path / "killed", make(), epochs=4, every=every, evaluate="no", kill=kill)
    again = RUNS[name](tmp_path / "killed", make(), epochs=4, every=every, evaluate="no", resume=True)
    assert same(again.weights, whole.weights)
    assert [merge.data() for merge in again.callback.stock.merges] == [
        merge.data() for merge in whole.callback.stock.merges
    ]


def test_lightning_schedules_that_move_by_epochs(tmp_path):
    """Lightning's default interval: each replica's first epoch is at the first rate."""
    callback = in_lightning.PeriodicStockCallback(Schedule(every=1, unit="epoch"), replicas=2)
    ended = run_lightning(tmp_path, callback, epochs=6, rates=functools.partial(falling, steps=3), interval="epoch")
    rates = [0.01 * (1 + np.cos(np.pi * epoch / 3)) for epoch in (0, 0, 1, 1, 2, 2)]
    np.testing.assert_allclose(ended.rates[::STEPS], rates, atol=1e-12)


def test_the_best_model_is_the_best_average(tmp_path):
    """load_best_model_at_end: what the Trainer loads is not overwritten."""
    callback = in_hf.AverageCallback(lambda model: EMA(model, decay=0.8))
    more = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    # Evaluated and saved at the fifth step and the tenth, not at the end: nothing is swapped in there.
    ended = run_hf(tmp_path, callback, epochs=2, **more, save_strategy="best", eval_steps=5, evaluate="steps")
    best = saved_model(tmp_path, 5)  # the greatest loss is the first
    assert same(ended.weights, best)
    close(best, mean_of(ended.steps[:5], ema(5)))


def stopped_at(step):
    """A user's own callback that ends training early."""

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **given):
            control.should_training_stop = state.global_step == step

    return Stop()


def test_training_that_ends_between_merges_says_so(tmp_path, monkeypatch):
    """The model is one replica then."""
    callback = in_hf.PeriodicStockCallback(Schedule(every=1, unit="epoch"), replicas=2)
    make = Trainer.__init__
    monkeypatch.setattr(
        Trainer, "__init__",
        lambda self, *own, callbacks, **more: make(self, *own, callbacks=[*callbacks, stopped_at(9)], **more),
    )  # fmt: skip
    with pytest.warns(UserWarning, match="training ended at epoch 0 of replica 1, the last merge was at 0"):
        run_hf(tmp_path, callback, epochs=4)


WRONG = {
    "the trainer's own schedule": (
        "hf", 2, {"rates": None, "epochs": 4},
        r"schedule \(LambdaLR\) runs over all replicas' steps.*expected 12 steps.*got 24.*one replica's steps",
    ),
    "a schedule over all": (
        "lightning", 2, {"rates": functools.partial(falling, steps=24), "epochs": 4},
        r"schedule \(CosineAnnealingLR\) runs over all replicas' steps.*expected 12 steps.*got 24",
    ),
    "epochs that do not divide": ("hf", 3, {"epochs": 4}, "expected num_train_epochs=6, 2 epochs for each.*got 4"),
    "epochs that do not divide, lightning": (
        "lightning", 3, {"epochs": 4}, "expected max_epochs=6, 2 epochs for each.*got 4",
    ),
    "a schedule that follows a metric": (
        "lightning", 2, {"epochs": 4, "rates": torch.optim.lr_scheduler.ReduceLROnPlateau, "interval": "epoch"},
        "ReduceLROnPlateau follows one replica's metric",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_before_the_first_step(case, tmp_path):
    """With the number to give."""
    name, replicas, more, message = WRONG[case]
    callback = CALLBACKS[name].PeriodicStockCallback(Schedule(every=1, unit="epoch"), replicas=replicas)
    with pytest.raises(errors.InputError, match=f"(?s){message}"):
        RUNS[name](tmp_path, callback, **more)


def test_more_that_is_refused(tmp_path):
    """An end of the schedule that the trainer never reaches; turns by steps, rates by epochs; an unknown word."""
    late = in_hf.PeriodicStockCallback(Schedule(every=1, unit="epoch", until=9), replicas=2)
    with pytest.raises(errors.ParameterError, match=r"(?s)before the last merge.*expected num_train_epochs=18.*got 4"):
        run_hf(tmp_path, late, epochs=4)
    with pytest.raises(errors.ParameterError, match="needs replicas to compare"):
        run_hf(tmp_path, in_hf.PeriodicStockCallback(Schedule(every=1), replicas=1), epochs=2, rates=constant)
    turns = in_lightning.PeriodicStockCallback(Schedule(every=3, unit="step"), replicas=2)
    with pytest.raises(errors.UsageError, match="CosineAnnealingLR moves at the ends of the Trainer's epochs"):
        run_lightning(tmp_path, turns, epochs=4, interval="epoch")
    with pytest.raises(errors.InputError, match=r"rank.*ranks"):
        in_hf.PeriodicStockCallback(Schedule(every=1), replicas="rank")
    with pytest.raises(errors.UsageError, match="training has not begun"):
        print(late.stock)
    with pytest.raises(errors.UsageError, match="process that torchrun started"), in_hf.one_run_per_rank():
        pass


@pytest.mark.parametrize("kind", ["average", "stock"])
def test_a_checkpoint_without_the_callback_is_no_beginning(name, kind, tmp_path):
    """Where the average or the replicas were not saved, nothing goes on in silence."""
    with pytest.raises(Killed):
        RUNS[name](tmp_path, None, epochs=2, kill=9)
    if kind == "average":
        callback = CALLBACKS[name].AverageCallback(SWA)
    else:
        callback = CALLBACKS[name].PeriodicStockCallback(Schedule(every=1), replicas=2)
    with pytest.raises(errors.UsageError, match=f"goes on from .*{type(callback).__name__}"):
        RUNS[name](tmp_path, callback, epochs=2, resume=True)
