"""Test-time fusion of the modalities' logits, in NumPy: stored predictions are enough.

Method: MLA's dynamic fusion (Zhang et al., CVPR 2024, test-time fusion) and its rivals. Each modality predicts alone;
a fusion weight per sample and modality mixes the logits (or the class probabilities) of those that are present.

| rule            | fusion weights                                                                        |
|-----------------|---------------------------------------------------------------------------------------|
| `entropy`       | softmax over the present modalities of minus the entropy of their prediction          |
| `entropy_batch` | as the authors' code: one entropy per modality and batch, taken over the batch axis   |
| `uniform`       | equal over the present modalities                                                     |
| `fixed`         | given per modality, renormalised over the present ones                                |
| `energy`        | logsumexp(logits) / 10, not normalised (QMF, Zhang et al., ICML 2023)                 |

An absent modality gets weight exactly 0 and its logits, NaN and infinity included, influence nothing. With every rule
but `entropy_batch`, a sample scores the same to the bit alone and in any batch: sums over modalities run in their
order, sums over classes along contiguous rows, and no BLAS routine chooses another order for another batch size.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from mla_cli.errors import MlaError

RULES = ("entropy", "entropy_batch", "uniform", "fixed", "energy")
NEIGHBOUR_WARNING = (
    "`entropy_batch` scores a sample by the batch it happens to stand in, as the released code does; "
    "use it for comparison only, and `entropy` for results"
)
BLOCK = 65_536  # numbers per block of rows: three such arrays stay in a core's cache
SAFE_LOGIT = 300.0  # exp(300) summed over any batch fits float64, and exp(-300) is no subnormal


def log_softmax(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    """Log-probabilities along `axis`, stable for any finite logits."""
    with np.errstate(invalid="ignore", over="ignore"):  # NaN in, NaN out
        shifted = logits - logits.max(axis=axis, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def softmax(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    """Probabilities along `axis`; -inf gets exactly 0."""
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = np.exp(logits - logits.max(axis=axis, keepdims=True))
        return scaled / scaled.sum(axis=axis, keepdims=True)


def entropy(logits: np.ndarray) -> np.ndarray:
    """Entropy in nats of softmax(logits) over the last axis: (sample, modality, class) -> (sample, modality).

    float64, in [0, log(classes)]; NaN where a logit is not finite.
    """
    log_p = log_softmax(np.ascontiguousarray(logits, dtype=np.float64))
    with np.errstate(invalid="ignore"):
        return -(np.exp(log_p) * log_p).sum(axis=-1)


def entropy_weights(logits: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Weight each modality by how sure its own prediction is (paper, test-time fusion).

    logits: (sample, modality, class); present: (sample, modality), bool, at least one True per row.
    Returns (sample, modality), float64; rows sum to 1 and absent modalities get exactly 0.
    """
    return Fuser(logits, present).weights(present, "entropy")


def fuse(
    logits: np.ndarray,
    present: np.ndarray,
    rule: str,
    of: str = "logits",
    weights: np.ndarray | Sequence[float] | None = None,
    batch_size: int = 64,
) -> np.ndarray:
    """Fused logits (sample, class) of one table; see `Fuser.fuse`. For many `present` tables make one `Fuser`."""
    return Fuser(logits, present).fuse(present, rule, of=of, weights=weights, batch_size=batch_size)


def released_weights(modalities: Sequence[str]) -> dict[str, float]:
    """The released recipes' `fixed` weights by modality name; MlaError for any other set of modalities."""
    if set(modalities) == {"audio", "visual", "text"} and len(modalities) == 3:
        table = {"audio": 0.35, "visual": 0.25, "text": 0.40}
    elif set(modalities) in ({"audio", "visual"}, {"text", "visual"}) and len(modalities) == 2:
        table = {"audio": 0.55, "text": 0.55, "visual": 0.45}
    else:
        raise MlaError(
            f"no released fixed weights for the modalities `{', '.join(modalities)}`",
            "give `fusion.weights` (`--fusion-weights` of `mla eval`), one number per modality",
        )
    return {modality: table[modality] for modality in modalities}


class Fuser:
    """What every fusion of one table of logits shares, computed once: many `present` tables then cost little.

    logits: (sample, modality, class); float32 stays float32, else float64. available: bool (sample, modality), the
    entries that really have logits (default: those that are finite). Memory: one copy of the logits, and float64
    copies for `of="probabilities"` and `entropy_batch` when first asked for.
    """

    def __init__(self, logits: np.ndarray, available: np.ndarray | None = None):
        logits = np.asarray(logits)
        if logits.ndim != 3 or 0 in logits.shape[1:]:
            raise MlaError(f"logits must be (sample, modality, class), got shape {logits.shape}")
        self.num_samples, self.num_modalities, self.num_classes = logits.shape
        finite = np.isfinite(logits).all(axis=-1)
        self.available = finite if available is None else self._checked(available)
        broken = int((self.available & ~finite).any(axis=1).sum())
        if broken:
            raise MlaError(
                f"{broken} of {self.num_samples} samples have logits that are NaN or infinite in a present modality",
                "the run diverged; train again with a smaller `train.lr`",
            )
        dtype = np.float32 if logits.dtype in (np.float32, np.float16) else np.float64
        self.logits = np.zeros((self.num_modalities, self.num_samples, self.num_classes), dtype)  # modality first
        for m in range(self.num_modalities):
            np.copyto(self.logits[m], logits[:, m], where=self.available[:, m, None])

    @cached_property
    def entropies(self) -> np.ndarray:
        """(modality, sample), nats."""
        return self._by_block(entropy)

    @cached_property
    def energies(self) -> np.ndarray:
        """(modality, sample): logsumexp(logits) / 10, as QMF scales it."""

        def energy(logits: np.ndarray) -> np.ndarray:
            wide = logits.astype(np.float64)
            top = wide.max(axis=-1)
            return (top + np.log(np.exp(wide - top[..., None]).sum(axis=-1))) / 10

        return self._by_block(energy)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """(modality, sample, class), float64."""
        return np.stack([softmax(part.astype(np.float64)) for part in self.logits])

    @cached_property
    def _exponentials(self) -> np.ndarray:
        """exp(x) and exp(x) x side by side, (modality, sample, 2 class): what any draw's batch entropies sum up."""
        scaled = np.exp(self.logits, dtype=np.float64)
        return np.concatenate([scaled, scaled * self.logits], axis=-1)

    def _by_block(self, function) -> np.ndarray:
        """Apply (sample, class) -> (sample,) to every modality, a block of rows at a time: less memory, same bits."""
        out = np.empty((self.num_modalities, self.num_samples))
        for rows in self._blocks():
            for m in range(self.num_modalities):
                out[m, rows] = function(self.logits[m, rows])
        return out

    def _blocks(self) -> list[slice]:
        size = max(1, BLOCK // self.num_classes)
        return [slice(start, start + size) for start in range(0, self.num_samples, size)]

    def _checked(self, present: np.ndarray) -> np.ndarray:
        present = np.asarray(present)
        shape = (self.num_samples, self.num_modalities)
        if present.shape != shape or present.dtype != np.bool_:
            raise MlaError(f"present must be bool {shape}, got {present.dtype} {present.shape}")
        return present

    def weights(
        self,
        present: np.ndarray,
        rule: str,
        fixed: np.ndarray | Sequence[float] | None = None,
        batch_size: int = 64,
    ) -> np.ndarray:
        """Fusion weights (sample, modality), float64, absent exactly 0; rows sum to 1 except with `energy`.

        present: bool (sample, modality). fixed: non-negative numbers in the modalities' order, for `fixed`.
        batch_size: rows per batch, in row order, for `entropy_batch`. Raises MlaError where a row has nothing present.
        """
        return np.ascontiguousarray(self._weights(present, rule, fixed, batch_size).T)

    def fuse(
        self,
        present: np.ndarray,
        rule: str,
        of: str = "logits",
        weights: np.ndarray | Sequence[float] | None = None,
        batch_size: int = 64,
    ) -> np.ndarray:
        """Fused logits (sample, class) in the logits' dtype. weights: as `fixed` in `weights`.

        of="probabilities": the log of the mixture of class probabilities, so that its softmax is the mixture; floored
        at the log of the smallest normal float64 (about -708 nats).
        """
        if of not in ("logits", "probabilities"):
            raise MlaError(f"unknown `fusion.of: {of}`", "write `logits` or `probabilities`")
        if of == "probabilities" and rule == "energy":
            raise MlaError("`fusion.rule: energy` is defined on logits only", "set `fusion.of: logits`")
        mixed = self._mix(self.logits if of == "logits" else self.probabilities, present, rule, weights, batch_size)
        if of == "probabilities":
            mixed = np.log(np.maximum(mixed, np.finfo(np.float64).tiny)).astype(self.logits.dtype)
        if not np.isfinite(mixed).all():
            broken = int((~np.isfinite(mixed)).any(axis=1).sum())
            text = f"`fusion.rule: {rule}`: fused logits of {broken} of {self.num_samples} samples leave {mixed.dtype}"
            raise MlaError(text, "the logits are far too large: fuse with `entropy`, or lower `train.lr`")
        return mixed

    def _mix(self, parts: np.ndarray, present: np.ndarray, rule: str, fixed, batch_size: int) -> np.ndarray:
        """sum_m weights_m parts_m in the order of modalities: (modality, sample, class) -> (sample, class)."""
        weights = self._weights(present, rule, fixed, batch_size).astype(parts.dtype)[..., None]
        mixed = np.empty(parts.shape[1:], parts.dtype)
        scratch = np.empty((max(1, BLOCK // self.num_classes), self.num_classes), parts.dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # `fuse` looks at what comes out
            for rows in self._blocks():
                total = np.multiply(parts[0, rows], weights[0, rows], out=mixed[rows])
                term = scratch[: len(total)]
                for m in range(1, self.num_modalities):
                    total += np.multiply(parts[m, rows], weights[m, rows], out=term)
        return mixed

    def _weights(self, present: np.ndarray, rule: str, fixed, batch_size: int) -> np.ndarray:
        """As `weights`, modality first: (modality, sample)."""
        present = np.ascontiguousarray(self._checked(present).T)
        empty = int((~present.any(axis=0)).sum())
        if empty:
            raise MlaError(f"{empty} of {self.num_samples} samples have no modality present", "leave these samples out")
        unknown = int((present & ~self.available.T).any(axis=0).sum())
        if unknown:
            raise MlaError(
                f"{unknown} of {self.num_samples} samples are marked present in a modality that has no logits there",
                "draw `present` over the entries that are really present",
            )
        if rule == "entropy":
            return _softmax_of_minus(self.entropies, present)
        if rule == "entropy_batch":
            return _softmax_of_minus(self._batch_entropies(present, batch_size), present)
        if rule == "uniform":
            return _normalised(present.astype(np.float64))
        if rule == "fixed":
            return _normalised(np.where(present, self._fixed(fixed), 0.0))
        if rule == "energy":
            return np.where(present, self.energies, 0.0)
        raise MlaError(f"unknown fusion rule `{rule}`", f"`fusion.rule` is one of {', '.join(RULES)}")

    def _fixed(self, weights: np.ndarray | Sequence[float] | None) -> np.ndarray:
        """The given weights as a (modality, 1) column, checked."""
        if weights is None:
            hint = "give `fusion.weights` (`--fusion-weights` of `mla eval`), one number per modality"
            raise MlaError("`fusion.rule: fixed` needs weights", hint)
        column = np.asarray(weights, dtype=np.float64)
        if column.shape != (self.num_modalities,) or not np.isfinite(column).all() or (column < 0).any():
            raise MlaError(
                f"`fusion.weights` must be {self.num_modalities} non-negative numbers, got {column.tolist()}",
                "give one per modality",
            )
        return column[:, None]

    def _batch_entropies(self, present: np.ndarray, batch_size: int) -> np.ndarray:
        """The released code's entropy, repeated over the rows of its batch: (modality, sample), nats.

        Per batch and modality, softmax over the BATCH axis, then -sum p log p over batch and classes: one number.
        Absent rows are left out; infinite where a batch has none present. With x the logits and Z_c = sum_b exp(x_bc),
        it is the sum over classes of log Z_c - (sum_b exp(x_bc) x_bc) / Z_c.
        """
        if batch_size < 1:
            raise MlaError(f"`fusion.batch_size` must be at least 1, got {batch_size}", "64 is the released value")
        out = np.full(present.shape, np.inf)
        small = bool(np.abs(self.logits).max(initial=0.0) < SAFE_LOGIT)
        for start in range(0, self.num_samples, batch_size):
            rows = slice(start, start + batch_size)
            inside = present[:, rows]
            if small:  # the exponentials of the whole table serve every draw of `present`
                sums = inside.astype(np.float64)[:, None] @ self._exponentials[:, rows]  # (modality, 1, 2 class)
                total, product = sums[:, 0, : self.num_classes], sums[:, 0, self.num_classes :]
                some = inside.any(axis=1)
                out[some, rows] = (np.log(total[some]) - product[some] / total[some]).sum(axis=-1, keepdims=True)
                continue
            for m in np.flatnonzero(inside.any(axis=1)):
                log_p = log_softmax(self.logits[m, rows][inside[m]].astype(np.float64), axis=0)
                out[m, rows] = -(np.exp(log_p) * log_p).sum()
        return out


def _softmax_of_minus(scores: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Softmax over the modalities (first axis) of minus the scores, the present ones only."""
    lowest = np.where(present, scores, np.inf).min(axis=0)
    return _normalised(np.exp(np.where(present, lowest - scores, -np.inf)))


def _normalised(weights: np.ndarray) -> np.ndarray:
    """Weights (modality, sample) divided by their sum per sample, taken in the order of modalities."""
    total = weights[0].copy()
    for row in weights[1:]:
        total += row
    empty = int((total == 0).sum())
    if empty:
        raise MlaError(
            f"in {empty} of {len(total)} samples the present modalities all have weight 0",
            "give every modality a positive weight",
        )
    return weights / total
