"""Link prediction as a training step: queries in, losses out.

Joins the nested model, the objective over sizes (croppable/med.py) and a regulariser. The batch comes from
croppable/kge/sampling.py, the loop is croppable/training.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from croppable.compiling import compile_or_not, import_kernels
from croppable.core import Nested
from croppable.kge import streaming
from croppable.kge.model import KGEModel
from croppable.kge.n3 import N3Penalty, n3_weights
from croppable.kge.sampling import runs_of_pools
from croppable.kge.scores import Side
from croppable.med import MED

__all__ = ["LinkPrediction"]

Compiled = Literal["none", "loss", "auto"]

FEW_SCORES = 2**24  # 64 MB, at one size: then scoring once and keeping all is a fifth faster than in tiles
MASKED = -1e4  # score of a negative that is the answer itself: probability zero, and still finite


class LinkPrediction(nn.Module):
    """Loss of a batch of queries at all sizes together.

    Args:
        model: The embedding model.
        objective: Over ``[K, B, C]`` scores and the index of the true column.
        n3: Weight of N3; 0 is off. Several: the weight of every size, on its own rows and reaching as far
            down as its loss does; ``n3_balance`` then means nothing.
        n3_balance: Weigh the N3 of a segment by the share of the sizes whose loss reaches it, (K - k) / K for
            segment k of K, to this power. At 0 the late segments, which few losses reach, are
            over-regularised; at 1 every segment feels losses and penalty in the same proportion; 2 also
            follows the best weight of separate training, which falls with the size (docs/med.md). With
            ``reach`` one power of the share is replaced by what then reaches the segment.
        reach: Factor on the gradient of a size per segment that it goes down (`damped`); 1 is the plain
            sum. Below 1 every size is scored by itself, which costs the sum of the sizes.
        trunk: The largest size that is trained as a nested one, for a product with relations of each size's
            own. Every segment above is a branch, a model by itself: its loss is the one of its size, and the
            score of such a size is the mean of trunk and branches by dims, which `join` writes into its
            relations (docs/med.md). None: all sizes.
        logq_correction: Whether the softmax over an answer and N uniform negatives stands for the one over
            all E entities: log((E - 1) / N) is added to the scores of negatives, minus the log of how often
            each other entity is expected among them (Bengio and Senecal, 2008,
            https://doi.org/10.1109/TNN.2007.912312). Without it an answer has N competitors only.
        compiled: "loss": ``torch.compile`` fuses scores and losses after the gather; without a C++ compiler
            this warns once and runs as "none". "auto": against all entities, tile by tile
            (croppable/kge/streaming.py); against negatives on the CPU, kernels that read the table's rows
            where they lie (croppable/kge/compiled_step.py; needs numba), and on other devices "loss"; where
            these do not know score and objective, "none". "none": the specification of the others.
        sparse: Whether the gradient of the entity table holds the touched rows only, for optimizers that take
            it (Adagrad, SparseAdam); where `makes_sparse` (croppable/kge/optimizing.py decides).

    Raises:
        ValueError: If ``compiled`` is unknown, ``reach`` is not from 0 to 1, the model cannot have this
            ``trunk``, or ``logq_correction`` is asked of binary losses, which no other column enters.
    """

    def __init__(
        self,
        model: KGEModel,
        objective: MED,
        *,
        n3: float | Sequence[float] = 0.0,
        n3_balance: float = 2.0,
        reach: float = 1.0,
        trunk: int | None = None,
        logq_correction: bool = False,
        compiled: Compiled = "none",
        sparse: bool = False,
    ) -> None:
        super().__init__()
        if compiled not in get_args(Compiled):
            raise ValueError(f"compiled must be one of {', '.join(get_args(Compiled))}, got {compiled!r}")
        self.nested = Nested(model, model.sizes)
        self.objective = objective
        if not 0 <= reach <= 1:
            raise ValueError(f"reach must be from 0 to 1, got {reach}")
        if not isinstance(n3, int | float) and len(n3) != len(model.sizes):
            raise ValueError(f"n3 must be one weight or one per size, got {tuple(n3)} for {model.sizes}")
        if trunk is not None:
            _check_trunk(trunk, model)
        if logq_correction and objective.task != "multiclass":
            raise ValueError(f"logq_correction is for task='multiclass', got {objective.task!r}")
        self.logq_correction = logq_correction
        self.n3, self.n3_balance, self.reach, self.trunk = n3, n3_balance, reach, trunk
        self.penalty = N3Penalty(
            model.sizes, n3_weights(n3, model.sizes, balance=n3_balance, reach=reach, trunk=trunk)
        )
        self.compiled: Compiled = compiled
        self.sparse = sparse
        self._compiled_loss: Callable[..., dict[str, Tensor]] | None = None

    @property
    def model(self) -> KGEModel:
        """The embedding model."""
        model = self.nested.model
        assert isinstance(model, KGEModel)
        return model

    @torch.no_grad()
    def join(self) -> None:
        """Write the relations with which sizes above the trunk read the dims of trunk and branches below.

        Size k reads its own branch as it is trained and a part of w dims below with the relations that this
        part was trained with, times w over the dims of its branch: by dims, the mean of the parts' scores,
        which no other size changes. `join_after` calls it whenever an optimizer has moved the parts.
        """
        if self.trunk is None:
            return
        table, sizes = self.model.relation, self.model.sizes
        first = sizes.index(self.trunk)
        ends = sizes[first:]  # of the parts; the trunk is the first
        for place in range(first + 1, len(sizes)):
            width = sizes[place] - sizes[place - 1]
            for part, (start, end) in enumerate(zip((0, *ends), ends[: place - first], strict=False)):
                table[place, :, start:end] = table[first + part, :, start:end] * ((end - start) / width)

    def join_after(self, optimizer: Optimizer) -> None:
        """Let every step of an optimizer end with `join`; those of `make_optimizer` do."""
        if self.trunk is not None:
            optimizer.register_step_post_hook(lambda *_: self.join())

    @property
    def sums(self) -> bool:
        """Whether a size's score is the next smaller one's plus a segment: streaming and kernels need it."""
        return self.model.relations == "shared" and self.reach == 1

    @property
    def makes_sparse(self) -> bool:
        """Whether negatives give the entity table a sparse gradient where ``sparse`` asks for it."""
        kernels = import_kernels("croppable.kge.compiled_step") if self.compiled == "auto" else None
        if kernels is None or self.n3 or not self.sums:
            return False
        return bool(kernels.supports(self.model.function, self.model.entity, self.objective))

    def forward(
        self,
        anchor: Tensor,
        relation: Tensor,
        target: Tensor,
        negatives: Tensor | None = None,
        side: Side | Tensor = "tail",
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            anchor: Ids of the known entities, ``[B]``.
            relation: Ids of the relations, ``[B]``.
            target: Ids of the answers, ``[B]``.
            negatives: Ids ``[B, N]`` per query, ``[C]`` shared by all queries, ``[G, C]`` for G pools with G
                less than B, each shared by a run of queries (`runs_of_pools`), or None: every entity.
            side: The side that is asked for; reciprocal models also take a bool tensor, see `KGEModel`.

        Returns:
            Scalars: "loss" and its parts.
        """
        if self.compiled == "auto" and not self.sums and negatives is None:
            losses = self._streamed_each(anchor, relation, target, side)
            if losses is not None:
                return losses
        if self.compiled == "auto" and self.sums:
            if negatives is None:
                losses = self._streamed(anchor, relation, target, side)
            else:
                losses = self._by_kernels(anchor, relation, target, negatives, side)
            if losses is not None:
                return losses
        gathered = self._gather(anchor, relation, target, negatives, side)
        if self.compiled == "none" or (self.compiled == "auto" and anchor.device.type == "cpu"):
            return self._loss_of_rows(*gathered)
        graphs = self.compiled == "auto" and anchor.device.type == "cuda"
        self._compiled_loss = self._compiled_loss or compile_or_not(self._loss_of_rows, graphs=graphs)
        losses = self._compiled_loss(*gathered)
        # The next replay of a graph writes where this one did.
        return {name: value.clone() for name, value in losses.items()} if graphs else losses

    def scores(
        self,
        anchor: Tensor,
        relation: Tensor,
        target: Tensor,
        negatives: Tensor | None = None,
        side: Side | Tensor = "tail",
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Score a batch at all sizes, for those who make another loss of it; arguments as in `forward`.

        Returns:
            Scores ``[K, B, C]``, the column of each answer ``[B]``, and the rows that N3 is taken of:
            anchors, relations and answers.
        """
        return self._scores_of_rows(*self._gather(anchor, relation, target, negatives, side))

    def _gather(
        self, anchor: Tensor, relation: Tensor, target: Tensor, negatives: Tensor | None, side: Side | Tensor
    ) -> tuple[Any, ...]:
        """Look up all rows of a batch: the arguments of `_scores_of_rows`."""
        per_query = negatives is not None and negatives.shape[:-1] == target.shape
        candidates = negatives
        if negatives is not None and per_query:
            candidates = torch.cat([target[:, None], negatives], 1)
        rows = self.model.lookup(anchor, relation, candidates, side)
        answers = None if per_query else self.model.lookup(target, relation, None, side)[0]
        return *rows, answers, target, None if per_query else negatives, negatives is None, side

    def _scores_of_rows(
        self,
        anchor: Tensor,
        relation: Tensor,
        candidates: Tensor,
        answers: Tensor | None,
        target: Tensor,
        shared: Tensor | None,
        against_all: bool,
        side: Side | Tensor,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        sizes = self.nested.sizes
        score = partial(self.model.score_rows, sizes, side=side, reach=self.reach, trunk=self.trunk)
        if shared is not None and shared.ndim == 2:
            scores, shared = self._against_pools(score, anchor, relation, candidates, shared)
        else:
            scores = score(anchor, relation, candidates)
        if answers is None:
            answers = candidates[:, 0]
        if shared is not None:
            scores = scores.masked_fill(shared == target[:, None], MASKED)
            scores = torch.cat([score(anchor, relation, answers[:, None]), scores], -1)
        if self.logq_correction and not against_all:
            shift = scores.new_zeros(scores.shape[-1])
            shift[1:] = math.log((self.model.num_entities - 1) / (len(shift) - 1))
            scores = scores + shift
        true_column = target if against_all else torch.zeros_like(target)
        return scores, true_column, (anchor, relation, answers)

    def _against_pools(
        self, score: Callable[..., Tensor], anchor: Tensor, relation: Tensor, candidates: Tensor, ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Score each run of queries against its own pool; return scores ``[K, B, C]`` and ids ``[B, C]``."""
        runs = runs_of_pools(len(anchor), len(ids))
        axis = int(self.model.relations == "own")  # of the queries, in the rows of relations
        scores = [
            score(anchor[begin:end], relation.narrow(axis, begin, end - begin), candidates[pool])
            for pool, (begin, end) in enumerate(runs)
        ]
        seen = [ids[pool].expand(end - begin, -1) for pool, (begin, end) in enumerate(runs)]
        return torch.cat(scores, 1), torch.cat(seen)

    def _loss_of_rows(self, *gathered: Any) -> dict[str, Tensor]:
        scores, true_column, rows = self._scores_of_rows(*gathered)
        return self.penalised(self.objective.terms(scores, true_column), *rows)

    def penalised(
        self, losses: dict[str, Tensor], anchor: Tensor, relation: Tensor, answer: Tensor
    ) -> dict[str, Tensor]:
        """Add N3 of the rows of anchors, relations and answers to "loss"."""
        if not self.n3:
            return losses
        penalty = self.penalty(anchor, relation, answer, own=self.model.relations == "own")
        return {**losses, "n3": penalty, "loss": losses["loss"] + penalty}

    def _streamed(
        self, anchor: Tensor, relation: Tensor, target: Tensor, side: Side | Tensor
    ) -> dict[str, Tensor] | None:
        """Compute the losses against all entities tile by tile, or None where that does not apply."""
        model, objective, sizes = self.model, self.objective, self.nested.sizes
        small = len(sizes) == 1 and len(anchor) * model.num_entities <= FEW_SCORES
        if small or not streaming.supports(model.function, objective):
            return None
        ids = torch.cat([anchor, target]) if self.n3 else anchor
        rows = model.lookup(ids, relation, None, side)[0]
        own, relation_rows = rows[: len(anchor)], model.relation_rows(relation, side)
        query = model.function.query(own, relation_rows, model.form(side))
        losses = streaming.softmax_losses(
            model.function, objective, query, model.entity, target, *model.calibrate(sizes)
        )
        return self.penalised(losses, own, relation_rows, rows[len(anchor) :]) if self.n3 else losses

    def _streamed_each(
        self, anchor: Tensor, relation: Tensor, target: Tensor, side: Side | Tensor
    ) -> dict[str, Tensor] | None:
        """As `_streamed` where sizes share no sums, size after size: for losses without neighbours."""
        model, objective, sizes = self.model, self.objective, self.nested.sizes
        apart = not (objective.mutual or objective.distills)
        if not (apart and streaming.supports(model.function, objective)):
            return None
        rows = model.lookup(torch.cat([anchor, target]), relation, None, side)
        own, relation_rows, answers = rows[0][: len(anchor)], rows[1], rows[0][len(anchor) :]
        losses = []
        for size, *calibration in zip(sizes, *model.calibrate(sizes), strict=True):
            some, asked, table = model.rows_at(size, own, relation_rows, model.entity, self.reach, self.trunk)
            query = model.function.query(some, asked, model.form(side))
            found = streaming.streamed_softmax(
                model.function, (table.shape[1],), query, table, target, *(c[None] for c in calibration)
            )
            losses.append(found.log_sum[0] - found.own[0])
        zero = own.new_zeros(())
        reduced = objective.reduce(objective.improve(torch.stack(losses)), zero, zero)
        return self.penalised(reduced, own, relation_rows, answers)

    def _by_kernels(
        self, anchor: Tensor, relation: Tensor, target: Tensor, negatives: Tensor, side: Side | Tensor
    ) -> dict[str, Tensor] | None:
        """Compute the losses of a batch by kernels, or None where they do not apply."""
        model, objective, sizes = self.model, self.objective, self.nested.sizes
        kernels = import_kernels("croppable.kge.compiled_step")
        if kernels is None or not kernels.supports(model.function, model.entity, objective):
            return None
        relation_rows = model.relation_rows(relation, side)
        improvement, mutual = kernels.binary_losses(
            kernels.Plan(model.function, sizes, objective, self.sparse),
            model.entity,
            relation_rows,
            *model.calibrate(sizes),
            anchor,
            target,
            negatives,
            model.form(side),
        )
        count = len(target) * (1 + negatives.shape[-1]) if objective.mutual_reduction == "mean" else 1
        distill = improvement.new_zeros(())
        losses = objective.reduce(improvement, objective.mutual * mutual.sum() / count, distill)
        if not self.n3:
            return losses
        own, answers = model.lookup(torch.cat([anchor, target]), relation, None, side)[0].chunk(2)
        return self.penalised(losses, own, relation_rows, answers)


def _check_trunk(trunk: int, model: KGEModel) -> None:
    """Raise ValueError where `LinkPrediction` cannot train a model with this trunk."""
    if trunk not in model.sizes[:-1]:
        raise ValueError(f"trunk must be one of the sizes but the last, {model.sizes}, got {trunk}")
    if model.relations != "own" or not model.function.product:
        raise ValueError(
            "a trunk needs a product (ComplEx, DistMult, SimplE) with relations='own', for larger sizes read "
            f"the dims below in their own way: got {model.score!r} with relations={model.relations!r}"
        )
