"""Fine-tune a CLIP on class folders of images, as the papers of Model Soups and Model Stock do.

    pip install 'stockpot[clip]'
    python examples/finetune_clip.py --model CLIP --data imagenet/train --classnames names.txt --out run-1
    torchrun --nproc-per-node 8 examples/finetune_clip.py ...              # one run, its batch shared by the ranks
    torchrun --nproc-per-node 2 examples/finetune_clip.py --replicas ranks ...   # a run each, merged every epoch
    python examples/finetune_clip.py --replicas 2 ...                      # two runs in turn, merged every epoch

CLIP is a folder as transformers writes it, with its tokenizer. The classifier begins as the zero-shot head of the class
names; vision tower and classifier are trained, the text tower is left as it is. OUT is such a folder again, with the
classifier beside the weights: `stockpot bench clip OUT ... --base CLIP` takes it. Another run: another --seed.
"""

import argparse
import contextlib
import math
import os
import random
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import AutoTokenizer, CLIPModel

from stockpot.evaluate import embedding, zero_shot_head
from stockpot.train import InTurn, PeriodicStock, Schedule, SideBySide

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HEAD = ("classification_head.weight", "classification_head.bias")
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Folders(Dataset):
    """Class folders, sorted; each image is cut out at random and turned round every second time."""

    def __init__(self, root, size):
        self.classes = sorted(path.name for path in Path(root).iterdir() if path.is_dir())
        self.items = [
            (path, label) for label, name in enumerate(self.classes) for path in sorted((Path(root) / name).iterdir())
        ]
        self.size = size

    def __len__(self):
        return len(self.items)

    def __getitem__(self, place):
        path, label = self.items[place]
        image = Image.open(path).convert("RGB")
        width, height = image.size
        area, ratio = (
            width * height * random.uniform(0.9, 1.0),
            math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3))),
        )
        wide, high = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
        left, top = random.uniform(0, width - wide), random.uniform(0, height - high)
        box = (left, top, left + wide, top + high)
        pixels = np.asarray(image.resize((self.size, self.size), Image.Resampling.BICUBIC, box)).copy()
        return torch.from_numpy(pixels[:, ::-1].copy() if random.random() < 0.5 else pixels), label


class Classifier(nn.Module):
    """The vision tower of a CLIP, and a linear classifier of its normalised features."""

    def __init__(self, clip, head):
        super().__init__()
        self.vision_model, self.visual_projection = clip.vision_model, clip.visual_projection
        self.classification_head = nn.Linear(head.shape[1], head.shape[0])
        with torch.no_grad():
            self.classification_head.weight.copy_(head)
            self.classification_head.bias.zero_()
        self.register_buffer("mean", torch.tensor(MEAN) * 255, persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION) * 255, persistent=False)

    def forward(self, pixels):
        images = ((pixels.float() - self.mean) / self.deviation).permute(0, 3, 1, 2)
        features = self.visual_projection(embedding(self.vision_model(pixel_values=images)))
        return self.classification_head(F.normalize(features, dim=-1))


def groups(model, decay):
    """Gains and biases are not decayed."""
    plain = [own for own in model.parameters() if own.ndim < 2]
    rest = [own for own in model.parameters() if own.ndim >= 2]
    return [{"params": plain, "weight_decay": 0.0}, {"params": rest, "weight_decay": decay}]


def share_of(warm_up, total):
    """Of the learning rate at a step: a linear rise, then a cosine to zero."""

    def share(step):
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, total - warm_up))))

    return share


def save(out, clip, model, tokenizer):
    """The CLIP with the vision tower as it is now, and the classifier beside it."""
    clip.save_pretrained(out)
    tokenizer.save_pretrained(out)
    own = {name: tensor.detach().float().cpu().contiguous() for name, tensor in model.state_dict().items()}
    whole = {name: tensor.detach().float().cpu().contiguous() for name, tensor in clip.state_dict().items()} | own
    save_file(whole, Path(out) / "model.safetensors", metadata={"format": "pt"})


def arguments():
    """As typed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of the CLIP")
    parser.add_argument("--data", required=True, help="FOLDER/CLASS/IMAGE")
    parser.add_argument("--classnames", required=True, help="names of the classes, one a line, in order of the folders")
    parser.add_argument("--templates", help="texts with {} for the class, one a line (default: a photo of a {}.)")
    parser.add_argument("--out", default="finetuned")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps", type=int, help="stop an epoch after so many")
    parser.add_argument("--batch", type=int, default=512, help="of all ranks together; of each replica")
    parser.add_argument("--rate", type=float, default=3e-5)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--warm-up", type=int, default=500, help="steps")
    parser.add_argument("--clip", type=float, default=1.0, help="norm of the gradient at most")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="bfloat16", help="of the arithmetic; weights are float32"
    )
    parser.add_argument("--replicas", default="1", help="1; N: in turn; ranks: one on each rank, under torchrun")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    """Train, merge if asked to, save."""
    given = arguments()
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device(given.device, int(os.environ.get("LOCAL_RANK", "0")) if given.device == "cuda" else None)
    if ranks > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    side_by_side = given.replicas == "ranks"
    shared = ranks if ranks > 1 and not side_by_side else 1  # ranks that train one run together
    clip, tokenizer = (
        CLIPModel.from_pretrained(given.model).float().to(device),
        AutoTokenizer.from_pretrained(given.model),
    )
    data = Folders(given.data, clip.config.vision_config.image_size)
    names = Path(given.classnames).read_text("utf-8").split("\n")[: len(data.classes)]
    templates = Path(given.templates).read_text("utf-8").split("\n") if given.templates else ["a photo of a {}."]
    if len([name for name in names if name]) != len(data.classes):
        raise SystemExit(f"{given.classnames} has fewer names than {given.data} has classes")
    with torch.inference_mode():
        head = zero_shot_head(clip, tokenizer, names, [line for line in templates if "{}" in line])
    model = Classifier(clip, head.clone()).to(device)
    optimizer = torch.optim.AdamW(groups(model, given.decay), lr=given.rate)
    batch = given.batch // shared
    per_epoch = min(given.steps or math.inf, len(data) // given.batch)
    if per_epoch < 1:
        raise SystemExit(f"{len(data)} images are less than one batch of {given.batch}: give --batch")
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of(given.warm_up, given.epochs * per_epoch))
    kind = PRECISIONS[given.precision]
    scaler = torch.amp.GradScaler(device.type, enabled=kind is torch.float16)
    stock, own = None, model
    if given.replicas != "1":
        schedule = Schedule(every=1, unit="epoch", until=given.epochs)
        extras = [rates, scaler] if scaler.is_enabled() else [rates]
        replicas = SideBySide(model, optimizer) if side_by_side else InTurn(
            model, optimizer, count=int(given.replicas), extras=extras
        )  # fmt: skip
        stock = PeriodicStock(replicas, schedule)
    elif shared > 1:
        own = nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    done = 0
    while not stock.is_finished if stock else done < given.epochs:
        replica = 0 if stock is None else rank if side_by_side else stock.replica
        epoch = done if stock is None else stock.epochs
        order = torch.Generator().manual_seed(hash((given.seed, replica, epoch)) % 2**31)
        places = torch.randperm(len(data), generator=order).tolist()
        places = places[rank::shared] if shared > 1 else places
        torch.manual_seed(hash((given.seed, replica, epoch, rank)) % 2**31)
        random.seed(hash((given.seed, replica, epoch, rank)))
        loader = DataLoader(
            torch.utils.data.Subset(data, places), batch_size=batch, drop_last=True, num_workers=given.workers,
            worker_init_fn=lambda number: random.seed(torch.initial_seed() + number), pin_memory=device.type == "cuda",
        )  # fmt: skip
        total = 0.0
        model.train()
        for step, (pixels, labels) in enumerate(loader):
            if step == per_epoch:
                break
            with torch.autocast(device.type, kind) if kind else contextlib.nullcontext():
                loss = F.cross_entropy(own(pixels.to(device)), labels.to(device))
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), given.clip)
            scaler.step(optimizer)
            scaler.update()
            rates.step()
            total += loss.item()
        print(f"replica {replica}, epoch {epoch + 1}: loss {total / per_epoch:.4f}", flush=True)
        done += 1
        if stock and (merge := stock.epoch_end()):
            ratios = [ratio for ratio in merge.ratios.values() if ratio is not None]
            print(f"merge after epoch {merge.at}: mean ratio {sum(ratios) / len(ratios):.3f}", flush=True)
    if rank == 0:
        save(given.out, clip, model, tokenizer)
    if ranks > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
