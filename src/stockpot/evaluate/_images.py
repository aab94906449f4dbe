"""``images:FOLDER``: class folders of pictures. Needs transformers and Pillow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stockpot import errors
from stockpot.evaluate import _transformers as hf
from stockpot.evaluate._base import Form, Options
from stockpot.evaluate._classify import classified, label_numbers
from stockpot.evaluate._data import digest_of_files
from stockpot.evaluate._scores import Scores
from stockpot.evaluate._zero_shot import embedding, zero_shot_head

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
BATCH = 32
KEPT_BYTES = 1 << 30
"""Prepared images that are kept in memory."""
TEMPLATES = "templates.txt"
"""In the image folder: one text a line with {} for the class; for models that compare images with texts."""
DEFAULT_TEMPLATES = ("a photo of a {}.",)


@dataclass(frozen=True)
class ImageEvaluator:
    """Accuracy and loss over a folder of class folders, by an image classifier or, zero-shot, by a CLIP.

    Class folders are matched with the labels of the config by name, else (the same number of both) in sorted order. A
    CLIP's classes are texts: per class the mean over templates of normalised embeddings, normalised again, times
    exp(logit_scale). Reference of the zero-shot head: Radford et al., arXiv 2103.00020; WiSE-FT, arXiv 2109.01903.
    """

    name: str
    folder: Path
    files: Sequence[tuple[Path, str]] = field(repr=False)
    options: Options
    form: Form = "state_dict"
    uses_folder: bool = True
    _kept: dict[str | int, object] = field(default_factory=dict, repr=False)

    @property
    def classes(self) -> list[str]:
        """Names of all class folders."""
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir())

    @cached_property
    def content(self) -> Mapping[str, Any]:
        data = [path for path, _ in self.files]
        if (self.folder / TEMPLATES).is_file():
            data.append(self.folder / TEMPLATES)
        return {
            "form": "images", "data": digest_of_files(data, self.folder), "precision": self.options.precision,
            "limit": self.options.limit, "transformers": hf.version(),
        }  # fmt: skip

    def evaluate(self, model: dict[str, Any] | Path, folder: Path | None = None) -> Scores:
        assert isinstance(model, dict)
        hf.require("transformers", "PIL")
        config = hf.config_of(folder, self.name)
        assert folder is not None
        options = self.options
        clip = "text_config" in config.to_dict()
        with torch.inference_mode():
            if clip:
                net = hf.placed(hf.model_of(config, model, ("Model",), self.name), options.device, options.precision)
                head = self._zero_shot_head(net, folder)
                labels = torch.tensor([self.classes.index(name) for _, name in self.files])
            else:
                built = hf.model_of(config, model, self.endings, self.name)
                net = hf.placed(built, options.device, options.precision)
                labels = self.labels(config)
            found = []
            for numbers in torch.arange(self.count).split(options.batch or BATCH):
                pixels = self.inputs(numbers.tolist(), folder)["pixel_values"].to(net.device, net.dtype)
                if clip:
                    one = F.normalize(embedding(net.get_image_features(pixel_values=pixels)), dim=-1) @ head.T
                else:
                    one = net(pixel_values=pixels).logits
                found.append(one.float().cpu())
        hf.let_go(net)
        return classified(torch.cat(found), labels)

    @property
    def count(self) -> int:
        """Examples."""
        return len(self.files)

    @property
    def endings(self) -> tuple[str, ...]:
        """How classes of models are called that can be differentiated here."""
        return ("ForImageClassification",)

    def labels(self, config: Any) -> Tensor:
        """One for each image, as the config numbers them."""
        return torch.tensor(label_numbers([name for _, name in self.files], self.classes, config, self.name))

    def inputs(self, numbers: Sequence[int], folder: Path) -> dict[str, Tensor]:
        """Images as the model's own processor makes them; kept as far as there is room, for the next candidate."""
        config = folder / "preprocessor_config.json"
        key = config.read_bytes() if config.is_file() else b""
        if self._kept.get("key") != key:
            self._kept.clear()
            self._kept["key"] = key
        missing = [number for number in numbers if number not in self._kept]
        found = dict(zip(missing, self._processed(missing, folder), strict=True)) if missing else {}
        each = [found[number] if number in found else self._kept[number] for number in numbers]
        for number, pixels in found.items():
            if (len(self._kept) + 1) * pixels.nbytes <= KEPT_BYTES:
                self._kept[number] = pixels
        return {"pixel_values": torch.stack([one for one in each if isinstance(one, Tensor)])}

    def _processed(self, numbers: Sequence[int], folder: Path) -> Tensor:
        from PIL import Image
        from transformers import AutoImageProcessor

        try:
            with hf.quietly():
                processor = AutoImageProcessor.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError) as error:
            raise errors.EvaluatorError(
                f"the image processor cannot be used ({str(error).splitlines()[0]:.200})", file=str(folder),
                expected="preprocessor_config.json beside the weights",
            ) from error  # fmt: skip
        opened = []
        for number in numbers:
            path = self.files[number][0]
            try:
                with Image.open(path) as image:
                    opened.append(image.convert("RGB"))
            except OSError as error:
                raise errors.InputError(f"an image cannot be read ({error})", file=str(path)) from None
        found = processor(images=opened, return_tensors="pt")["pixel_values"]
        assert isinstance(found, Tensor)
        return found

    def _zero_shot_head(self, net: Any, folder: Path) -> Tensor:
        """One row a class, as arXiv 2103.00020 makes it."""
        path = self.folder / TEMPLATES
        lines = path.read_text("utf-8").splitlines() if path.is_file() else DEFAULT_TEMPLATES
        templates = [line.strip() for line in lines if line.strip()]
        names = [name.replace("_", " ") for name in self.classes]
        head: Tensor = zero_shot_head(net, hf.tokenizer_of(folder), names, templates).to(net.dtype)
        return head


def load_images(text: str, words: str, options: Options) -> ImageEvaluator:
    """Find the images: (image, class) in sorted order; with a limit evenly from all classes."""
    hf.require("transformers", "PIL")
    folder = Path(words).expanduser()
    classes = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    found = [
        [(file, path.name) for file in sorted(path.iterdir()) if file.suffix.lower() in IMAGE_ENDINGS]
        for path in classes
    ]
    if not any(found):
        raise errors.NotFoundError(
            "there are no images",
            file=str(folder),
            expected="FOLDER/CLASS/IMAGE.png",
            remedy="check the folder",
        )
    if options.limit is None:
        return ImageEvaluator(text, folder, [one for own in found for one in own], options)
    turns = [one for turn in range(max(map(len, found))) for own in found for one in own[turn : turn + 1]]
    return ImageEvaluator(text, folder, sorted(turns[: options.limit]), options)
