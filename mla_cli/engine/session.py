"""A recipe and its data as live objects: method, optimisers, loaders, and the state that a checkpoint holds."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from mla_cli import registry
from mla_cli.core.loss_scale import LossScale
from mla_cli.core.method import BaseMethod, Context
from mla_cli.core.model import build_encoders, load_pretrained
from mla_cli.core.ranks import ALONE, Ranks
from mla_cli.data.augment import check_augment
from mla_cli.data.loader import SplitLoader
from mla_cli.engine.compiling import compile_encoders
from mla_cli.engine.data import Data
from mla_cli.engine.devices import autocast_dtype
from mla_cli.engine.diagnostics import Diagnostics
from mla_cli.engine.inputs import Inputs
from mla_cli.engine.learning_rate import learning_rate_factor
from mla_cli.engine.optimizers import build_optimizers
from mla_cli.engine.progress import Progress, diverged_hint
from mla_cli.errors import MlaError
from mla_cli.schema import Recipe

LOSS_CHECK_ROUNDS = 50  # losses stay on the device; so often they are read and checked for NaN


class Session:
    """Everything that trains. Build it from a completed recipe (`engine.data.complete`).

    stored: read the features of frozen encoders from the store, where `inputs.compute_features` puts them first; else
    their networks run on every batch. Both train alike, up to rounding.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        device: torch.device,
        training: bool = True,
        stored: bool | None = None,
        ranks: Ranks = ALONE,
    ):
        self.recipe, self.data, self.device, self.training, self.ranks = recipe, data, device, training, ranks
        self.stores = data.stores()
        for m, settings in recipe.augment.items():
            check_augment(m, self.stores[m].kind, settings)
        self.method = self.build_method(training)
        if recipe.train.sync_batchnorm and not ranks.is_alone:
            torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.method)
        self.optimizers = build_optimizers(recipe, self.method, device)
        if training and recipe.train.precision == "16":
            self.method.scale = LossScale(device, self.optimizers.values())
        self.base_rates = {name: opt.param_groups[0]["lr"] for name, opt in self.optimizers.items()}
        self.progress = Progress()
        self.inputs = Inputs(recipe, data, device, self.method, training if stored is None else stored)
        self.loaders, self.blanks = self.inputs.loaders, self.inputs.blanks
        self.diagnostics: Diagnostics | None = None
        if training:
            self.train_loader = self.inputs.train_loader()
            if recipe.train.diagnostics and ranks.is_first:  # they read the model only, the others need not
                train, held = self.split_loader("train"), self.split_loader("val")
                self.diagnostics = Diagnostics(self.method, train, data.train_present, held, recipe.seed)
        self.method.blanks = self.blanks
        if training and recipe.train.compile:
            part = ranks.share(recipe.train.batch_size)  # of a full batch
            self.method.compiled = compile_encoders(self.method.encoders, part.stop - part.start)

    def build_method(self, pretrained: bool) -> BaseMethod:
        recipe, data = self.recipe, self.data
        tokens = {m: data.store.manifest["modalities"][m]["tokens"] for m, s in self.stores.items() if s.kind == "text"}
        shapes = {m: store.shape for m, store in self.stores.items()}
        encoders = build_encoders(recipe.encoders, shapes, tokens, recipe.shared_width, recipe.seed)
        self.loaded = load_pretrained(encoders, recipe.encoders) if pretrained else []  # a checkpoint needs no file
        context = Context(
            modalities=list(data.modalities),
            encoders=encoders,
            num_classes=len(data.classes),
            width=recipe.shared_width,
            seed=recipe.seed,
            section=recipe.method,
            device=self.device,
            label_smoothing=recipe.train.label_smoothing,
            autocast=autocast_dtype(recipe.train.precision),
            ranks=self.ranks,
            sync_batchnorm=recipe.train.sync_batchnorm,
            num_samples=len(data.splits["train"]) if "train" in data.splits else 0,
            epochs=recipe.train.epochs,
        )
        keys = recipe.method.options().get(recipe.method.name, {})
        method: BaseMethod = registry.load("methods", recipe.method.name).Method(context, **keys)
        return method.to(self.device)

    def split_loader(self, split: str) -> SplitLoader:
        return self.inputs.split_loader(split)

    # ------------------------------------------------------------ training

    @property
    def rounds(self) -> int:
        """Rounds of an epoch."""
        count = len(self.train_loader.rounds)
        return min(count, self.recipe.train.max_rounds or count)

    def train_epoch(self) -> dict[str, float]:
        """Run the rest of the next epoch and return its mean training loss per output; see `train_rounds`."""
        means = self.train_rounds()
        self.close_epoch()
        return means

    def train_rounds(self, after_round: Callable[[], None] | None = None) -> dict[str, float]:
        """Run the rounds that are left of the next epoch and return its mean training loss per output.

        after_round() is called when a round is done: then `state` can be saved. The epoch counts as complete after
        `close_epoch`. Raises MlaError at the first loss that is not finite.
        """
        progress, train = self.progress, self.recipe.train
        epoch = progress.epoch + 1
        self.method.train()
        self.method.start_epoch(epoch)
        if progress.round:  # even where no round is left, the rate is that of the last one
            self.set_learning_rate(progress.epoch + (progress.round - 1) / self.rounds)
        for batch in self.train_loader.epoch(epoch, progress.round, train.max_rounds):
            self.set_learning_rate(progress.epoch + batch.round / batch.rounds)
            with self.diagnostics.watching(batch) if self.diagnostics else nullcontext():
                losses = self.method.step(batch)
            for output, loss in losses.items():
                progress.losses.setdefault(output, []).append(loss)
                progress.loss_rounds.setdefault(output, []).append(batch.round)
            progress.round = batch.round + 1
            if progress.round % LOSS_CHECK_ROUNDS == 0:
                self.check_losses()
            if after_round is not None:
                after_round()
        means = self.check_losses()
        self.check_weights()
        return means

    def close_epoch(self) -> None:
        """Count the epoch whose rounds are done."""
        progress = self.progress
        progress.epoch, progress.round, progress.losses, progress.loss_rounds = progress.epoch + 1, 0, {}, {}

    def end_epoch(self) -> dict[str, float]:
        """Diagnostics of the epoch: the method's own, and those that all methods share."""
        facts = self.method.end_epoch() | (self.diagnostics.end_epoch() if self.diagnostics else {})
        return facts if self.method.scale is None else facts | self.method.scale.end_epoch()

    def share_buffers(self) -> None:
        """Give every rank the batch statistics of rank 0, before anything is scored with them."""
        self.ranks.copy_first(list(self.method.buffers()))

    def set_learning_rate(self, progress: float) -> None:
        factor = learning_rate_factor(self.recipe.train, progress)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.base_rates[name] * factor

    def check_losses(self) -> dict[str, float]:
        """Mean loss per output so far in this epoch; the only place where losses are read from the device."""
        means, bad = {}, []
        for output, losses in self.progress.losses.items():
            # kept as one tensor from now on: thousands of small ones would be stacked at every look
            self.progress.losses[output] = [torch.cat([loss.reshape(-1) for loss in losses])]
            values = self.progress.losses[output][0].cpu().double()  # MPS has no float64
            wrong = (~torch.isfinite(values)).nonzero()
            if len(wrong):
                place = int(wrong[0])
                bad.append((self.progress.loss_rounds[output][place] + 1, output, float(values[place])))
            means[output] = float(values.mean())
        if bad:  # one modality's NaN reaches the others through a shared head: name the first
            step, output, value = min(bad, key=lambda found: found[0])
            name = f"head.{output}" if f"head.{output}" in self.base_rates else next(iter(self.base_rates))
            rate = self.optimizers[name].param_groups[0]["lr"]
            raise MlaError(
                f"loss of `{output}` is {value} at epoch {self.progress.epoch + 1}, step {step} (lr {rate:g})",
                diverged_hint(rate, self.recipe.train.weight_decay),
            )
        return means

    def check_weights(self) -> None:
        """Raise MlaError if a step with a finite loss left weights that are not finite; before every checkpoint."""
        weights = dict(self.method.named_parameters())
        finite = torch.stack([torch.isfinite(weight.detach()).all() for weight in weights.values()]).cpu()
        if not finite.all():
            name = list(weights)[int((~finite).nonzero()[0])]
            place = f"epoch {self.progress.epoch + 1}, step {self.progress.round}"
            raise MlaError(
                f"the weights `{name}` are not finite after {place}",
                diverged_hint(self.recipe.train.lr, self.recipe.train.weight_decay),
            )

    # ------------------------------------------------------------ checkpoints

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that resuming needs, as tensors and JSON values."""
        tensors = self.model_state()
        for name, optimizer in self.optimizers.items():
            for number, state in optimizer.state_dict()["state"].items():
                tensors |= {
                    f"optim.{name}/{number}/{key}": value for key, value in state.items() if isinstance(value, Tensor)
                }
        extra, values = self.method.extra_state()
        tensors |= {f"extra.{key}": value for key, value in extra.items()}
        progress = self.progress
        tensors |= {
            f"loss.{output}": torch.cat([loss.reshape(-1) for loss in losses])
            for output, losses in progress.losses.items()
        }
        tensors |= self.diagnostics.state() if self.diagnostics else {}
        tensors |= self.method.scale.state() if self.method.scale else {}
        return tensors, {
            "epoch": progress.epoch,
            "round": progress.round,
            "best_epoch": progress.best_epoch,
            "best_accuracy": progress.best_accuracy,
            "loss_rounds": progress.loss_rounds,
            "outputs": list(progress.losses),  # both formats sort their keys; history.jsonl keeps the order of training
            "skipped": self.train_loader.skipped,
            "method": values,
        }

    def input_state(self) -> dict[str, Tensor]:
        """What turns raw features into inputs: with the weights, all that scoring other data needs."""
        tensors = {f"blank.{m}": blank for m, blank in self.inputs.raw_blanks.items()}
        for m, (mean, sd) in self.data.normalisation.items():
            tensors |= {f"mean.{m}": torch.from_numpy(mean), f"sd.{m}": torch.from_numpy(sd)}
        return tensors

    def model_state(self) -> dict[str, Tensor]:
        """The weights that train, and what turns raw features into inputs."""
        return self.weights(frozen=False) | self.input_state()

    def weights(self, frozen: bool) -> dict[str, Tensor]:
        """Parameters and buffers of the frozen networks, or of everything else."""
        networks = tuple(f"encoders.{m}.network." for m, e in self.method.encoders.items() if e.frozen)
        state = self.method.state_dict().items()
        return {f"model.{key}": value for key, value in state if key.startswith(networks) == frozen}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Restore `state`."""
        self.load_model(tensors)
        by_optimizer: dict[str, dict[int, dict[str, Tensor]]] = {}
        for key, value in tensors.items():
            if key.startswith("optim."):
                name, number, part = key.removeprefix("optim.").rsplit("/", 2)
                by_optimizer.setdefault(name, {}).setdefault(int(number), {})[part] = value
        for name, optimizer in self.optimizers.items():
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": by_optimizer.get(name, {}), "param_groups": groups})
        extra = {k.removeprefix("extra."): v.to(self.device) for k, v in tensors.items() if k.startswith("extra.")}
        self.method.load_extra_state(extra, values["method"])
        self.train_loader.skipped = dict(values["skipped"])
        if self.diagnostics:
            self.diagnostics.load_state(tensors)
        if self.method.scale:
            self.method.scale.load_state(tensors)
        self.progress = Progress(
            values["epoch"],
            values["round"],
            values["best_epoch"],
            values["best_accuracy"],
            {output: [tensors[f"loss.{output}"].to(self.device)] for output in values["outputs"]},
            {output: list(values["loss_rounds"][output]) for output in values["outputs"]},
        )

    def load_model(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the weights and imputed inputs of a checkpoint; every name must match.

        Frozen networks may be left out where they were built with their own weights, as for training.
        """
        given = (self.weights(frozen=True) if self.training else {}) | dict(tensors)
        state = {k.removeprefix("model."): v for k, v in given.items() if k.startswith("model.")}
        try:
            self.method.load_state_dict(state)
        except RuntimeError as error:
            raise MlaError(
                f"the checkpoint does not fit this recipe: {str(error).splitlines()[-1].strip()}",
                "was it made by another version? Train again with `--force`",
            ) from error
        for m in self.method.modalities:
            if f"blank.{m}" in tensors:
                self.inputs.set_blank(m, tensors[f"blank.{m}"].to(self.device))
