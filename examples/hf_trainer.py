"""Averages while training, in a Hugging Face Trainer; ten seconds on a laptop.

A tiny ViT that has learned nothing yet learns digits, so that this runs anywhere: load yours by from_pretrained().

    pip install 'stockpot[trainer,demo]'
    python examples/hf_trainer.py                       # one run, evaluated and saved as its EMA
    python examples/hf_trainer.py --replicas 3          # three replicas in turn, Model Stock after every epoch
    torchrun --nproc-per-node 2 examples/hf_trainer.py --replicas ranks     # one replica on each rank
"""

import argparse
import contextlib

import torch
from sklearn.datasets import load_digits
from transformers import (
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    get_cosine_schedule_with_warmup,
)

from stockpot.train import EMA, Schedule
from stockpot.train.transformers import AverageCallback, PeriodicStockCallback, one_run_per_rank


def digits(first, last):
    """Some of scikit-learn's handwritten digits, as the Trainer takes them."""
    images, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(images[first:last]).float().reshape(-1, 1, 8, 8) / 16
    return [
        {"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels[first:last], strict=True)
    ]


def accuracy(prediction):
    """Per cent."""
    return {"accuracy": 100 * float((prediction.predictions.argmax(axis=1) == prediction.label_ids).mean())}


def main() -> None:
    """Train, evaluate, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", default="1", help="1: an EMA of one run; N: in turn; ranks: under torchrun")
    parser.add_argument("--epochs", type=int, default=8, help="of each replica")
    parser.add_argument("--out", default="hf-trainer")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    given = parser.parse_args()
    together = one_run_per_rank() if given.replicas == "ranks" else contextlib.nullcontext(0)
    with together as rank:
        torch.manual_seed(0)  # the same base on every rank
        model = ViTForImageClassification(
            ViTConfig(
                image_size=8, patch_size=2, num_channels=1, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
                intermediate_size=96, num_labels=10, hidden_dropout_prob=0.1,
            )
        )  # fmt: skip
        train, test = digits(0, 800), digits(800, 1797)
        turns = int(given.replicas) if given.replicas.isdigit() else 1
        one_run = given.epochs * -(-len(train) // 32)  # steps of one replica: its learning rate falls over these
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        rates = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=20, num_training_steps=one_run)
        if given.replicas == "1":
            callback = AverageCallback(lambda model: EMA(model, 0.95, warm_up=True))
        else:
            callback = PeriodicStockCallback(
                Schedule(every=1, unit="epoch"), replicas=turns if given.replicas.isdigit() else "ranks"
            )
        trainer = Trainer(
            model,
            TrainingArguments(
                output_dir=f"{given.out}/rank-{rank}", num_train_epochs=given.epochs * turns, seed=1 + rank,
                per_device_train_batch_size=32, per_device_eval_batch_size=256, eval_strategy="epoch",
                save_strategy="epoch", save_total_limit=2, use_cpu=True, report_to="none", disable_tqdm=True,
            ),
            train_dataset=train, eval_dataset=test, compute_metrics=accuracy, optimizers=(optimizer, rates),
            callbacks=[callback],
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=given.resume)
        trainer.save_model(f"{given.out}/final-{rank}")
        print(f"rank {rank}: {trainer.evaluate()['eval_accuracy']:.2f} per cent")
        if isinstance(callback, PeriodicStockCallback):
            for merge in callback.stock.merges:
                ratios = [ratio for ratio in merge.ratios.values() if ratio is not None]
                print(f"  merge after epoch {merge.at}: mean ratio {sum(ratios) / len(ratios):.3f}")


if __name__ == "__main__":
    main()
