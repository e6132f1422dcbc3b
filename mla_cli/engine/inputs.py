"""The samples of every split as the encoders take them: batches, imputed inputs, stored features of frozen ones."""

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mla_cli.core.method import BaseMethod
from mla_cli.core.model import needs_two
from mla_cli.data.loader import ModalityLoader, SplitLoader, TrainLoader
from mla_cli.data.order import Blocks, Rounds
from mla_cli.engine.events import Steps
from mla_cli.engine.frozen import FrozenFeatures
from mla_cli.errors import MlaError
from mla_cli.schema import AugmentSection, Recipe

if TYPE_CHECKING:
    from mla_cli.engine.data import Data


LARGE_SHARE = 0.5  # of the memory: what is larger does not stay in the kernel's cache from one epoch to the next


class Inputs:
    """Loaders and imputed inputs of one model over one experiment's data.

    stored: frozen encoders get the features of their networks, which `compute_features` stores before the first batch.
    blanks: modality -> what the encoder takes for an absent input; raw_blanks: that input before any network.
    """

    def __init__(self, recipe: Recipe, data: "Data", device: torch.device, method: BaseMethod, stored: bool):
        self.recipe, self.data, self.device, self.method = recipe, data, device, method
        self.stores = {m: store for m, store in data.stores().items() if m in method.modalities}
        self.raw_stores, self.normalisation = dict(self.stores), dict(data.normalisation)
        self.loaders: dict[str, SplitLoader] = {}
        self.blanks: dict[str, Tensor] = {}
        self.raw_blanks: dict[str, Tensor] = {}
        self.features: dict[str, FrozenFeatures] = {}
        for m in method.modalities:
            if stored and recipe.encoders[m].frozen:
                self.features[m] = FrozenFeatures(m, recipe, data, method, device)
                self.stores[m] = self.features[m].store
                self.normalisation[m] = np.zeros(1), np.ones(1)
                method.encoders[m].ready = True  # type: ignore[assignment]

    def compute_features(self) -> Steps[None]:
        """Store what is not stored yet of the frozen networks' features."""
        for features in self.features.values():
            yield from features.compute()

    def split_loader(self, split: str) -> SplitLoader:
        if split not in self.loaders:
            self.loaders[split] = SplitLoader(self.data.splits[split], self.stores, self.normalisation, self.device)
        return self.loaders[split]

    def train_loader(self) -> TrainLoader:
        """The training batches. Raises MlaError for recipe keys that contradict each other."""
        recipe, data = self.recipe, self.data
        fill = self.method.aligned or recipe.train.absent == "zeros"  # absent inputs are imputed, not skipped
        if recipe.train.absent == "zeros" and recipe.method.batching == "independent":
            raise MlaError(
                "`train.absent: zeros` trains on whole samples, `method.batching: independent` on single modalities",
                "set `method.batching: shared`, or `train.absent: skip`",
            )
        if recipe.train.modality_dropout and not self.method.aligned:
            raise MlaError(
                f"`train.modality_dropout` does nothing for `{recipe.method.name}`, which trains modalities apart",
                "set it to 0, or choose a joint method such as `concat`",
            )
        rounds = Rounds(
            data.train_present,
            data.modalities,
            recipe.method,
            recipe.train.batch_size,
            recipe.seed,
            aligned=fill,
            blocks=Blocks(recipe.train.block_rows, recipe.train.mixed_blocks)
            if recipe.train.shuffle == "blocks"
            else None,
        )
        least = {m: 2 if needs_two(self.method.encoders[m]) else 1 for m in self.method.modalities}  # type: ignore[arg-type]
        if self.method.aligned:  # a joint step is possible only if every encoder can take the batch
            least = dict.fromkeys(least, max(least.values()))
        for m, fewest in least.items():
            if recipe.train.batch_size < fewest:  # every step would be skipped
                raise MlaError(
                    f"`train.batch_size: {recipe.train.batch_size}` trains nothing of `{m}`: batch normalisation takes "
                    f"no fewer than {fewest} samples",
                    "give `--set train.batch_size=2` or more, or choose an encoder without batch normalisation",
                )
        for m in self.method.modalities:
            self.set_blank(m, self.imputed_input(m))
        split, augment = self.split_loader("train"), self.augmentation()
        return TrainLoader(
            split,
            rounds,
            data.train_present,
            fill,
            augment,
            self.blanks,
            least,
            recipe.train.modality_dropout,
            self.method.ranks,
            least_share=1 if recipe.train.sync_batchnorm else None,
        )

    def augmentation(self) -> dict[str, AugmentSection]:
        """What is on, by modality; nothing for a frozen encoder, whose features are stored."""
        asked = {m: settings for m, settings in self.recipe.augment.items() if settings != AugmentSection()}
        return {m: settings for m, settings in asked.items() if not self.recipe.encoders[m].frozen}

    def warnings(self, pretrained: Collection[str]) -> list[str]:
        """What the recipe asks for and does not get, or surely did not mean. pretrained: modalities with weights."""
        found = []
        for m in self.method.modalities:
            section = self.recipe.encoders[m]
            if section.frozen and self.recipe.augment.get(m, AugmentSection()) != AugmentSection():
                found.append(f"augment.{m} is off: the encoder is frozen, and its features are computed once")
            if section.frozen and m not in pretrained and not section.options().get("pretrained"):
                found.append(
                    f"the encoder of {m} is frozen as it starts, at random: no `encoders.{m}.weights` is given"
                )
        return [*found, *self.order_warnings()]

    def order_warnings(self) -> list[str]:
        """What `train.shuffle` does that the data do not need, or does not do that they need."""
        from mla_cli.engine.measure import physical_memory  # imports much that training does without

        train, split = self.recipe.train, self.split_loader("train")
        if train.shuffle == "blocks" and not split.is_mapped:
            mixed = train.block_rows * train.mixed_blocks
            return [
                f"train.shuffle: blocks mixes {mixed:,} samples at a time; these are in memory, `full` costs nothing"
            ]
        size, memory = split.mapped_bytes, physical_memory()
        if train.shuffle == "full" and memory is not None and size > LARGE_SHARE * memory:
            return [
                f"the training samples take {size / 2**30:.1f} GiB, more than half of {memory / 2**30:.1f} GiB of "
                "memory, and are read in random order; where the disk is too slow for that, "
                "`--set train.shuffle=blocks` reads neighbours together"
            ]
        return []

    def imputed_input(self, modality: str) -> Tensor:
        """The imputed input of a modality: zeros after normalisation, or the mean over the training samples.

        Text has no mean: its imputed input is padding only.
        """
        loader = self.raw_loader(modality)
        if self.recipe.impute != "train_mean" or loader.is_text:
            return loader.blank
        has = np.flatnonzero(self.data.train_present[:, self.data.modalities.index(modality)])
        total = torch.zeros(loader.blank.shape, dtype=torch.float64)
        for start in range(0, len(has), 256):
            total += loader.batch(has[start : start + 256]).cpu().sum(0, dtype=torch.float64)
        return (total / len(has)).to(loader.blank)

    def raw_loader(self, modality: str) -> ModalityLoader:
        """The training split's inputs before any network."""
        if modality not in self.features:
            loader = self.split_loader("train").modalities[modality]
            _ = loader.resident  # here, so that damaged features are found before anything is written
            return loader
        samples = self.data.splits["train"]
        rows = samples.rows[:, samples.modalities.index(modality)]
        return ModalityLoader(self.raw_stores[modality], rows, *self.data.normalisation[modality], self.device)

    def set_blank(self, modality: str, raw: Tensor) -> None:
        """Take an imputed input, after the network's weights are there."""
        self.raw_blanks[modality] = raw
        ready = modality in self.features
        self.blanks[modality] = self.method.frozen_features(modality, raw[None])[0] if ready else raw
