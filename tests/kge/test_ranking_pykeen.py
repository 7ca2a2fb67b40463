"""PyKEEN's filtered ranking of our cropped tables gives our metrics."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from croppable.core import crop
from croppable.kge.known import KnownTriples
from croppable.kge.metrics import rank_metrics
from croppable.kge.model import KGEModel
from croppable.kge.ranking import rank_triples
from croppable.kge.triples import KnowledgeGraph, read_graph

SIZES = (5, 16, 40)
THEIR_NAMES = {
    "mrr": "inverse_harmonic_mean_rank",
    "hits@1": "hits_at_1",
    "hits@3": "hits_at_3",
    "hits@10": "hits_at_10",
    "mean_rank": "arithmetic_mean_rank",
}


@pytest.fixture(scope="module")
def umls(data_dir: Path) -> KnowledgeGraph:
    return read_graph(data_dir / "kg" / "umls")


def pykeen_results(model: KGEModel, graph: KnowledgeGraph) -> Any:
    """Evaluate a copy of the model in PyKEEN on the test split, filtered by all three splits."""
    from pykeen.evaluation import RankBasedEvaluator
    from pykeen.models import ERModel
    from pykeen.nn import Embedding
    from pykeen.nn.init import PretrainedInitializer
    from pykeen.nn.modules import ComplExInteraction, DistMultInteraction, Interaction, TransEInteraction
    from pykeen.triples import CoreTriplesFactory

    class SumOfModuli(Interaction):  # theirs is the Euclidean norm of the moduli
        def forward(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
            return -(h * r - t).abs().sum(-1)

    interactions = {
        "transe-l1": lambda: TransEInteraction(p=1),
        "distmult": DistMultInteraction,
        "complex": ComplExInteraction,
        "rotate": SumOfModuli,
    }
    relation = model.relation.detach()
    if model.score == "rotate":
        relation = torch.stack([relation.cos(), relation.sin()], -1)

    def table(rows: Tensor) -> dict[str, Any]:
        dtype = torch.cfloat if rows.ndim == 3 else torch.float
        return {"shape": rows.shape[1:2], "dtype": dtype, "initializer": PretrainedInitializer(rows)}

    copy = ERModel(
        triples_factory=CoreTriplesFactory(graph.train, graph.num_entities, graph.num_relations),
        interaction=interactions[model.score](),
        entity_representations=Embedding,
        entity_representations_kwargs=table(model.entity.detach()),
        relation_representations=Embedding,
        relation_representations_kwargs=table(relation),
        random_seed=0,
    )
    return RankBasedEvaluator(filtered=True).evaluate(
        copy,
        graph.test,
        additional_filter_triples=[graph.train, graph.valid],
        batch_size=64,
        use_tqdm=False,
    )


def trained(model: KGEModel, graph: KnowledgeGraph) -> KGEModel:
    """Take a few steps of softmax over all tails: enough to spread the ranks."""
    adam = torch.optim.Adam(model.parameters(), lr=0.05)
    for batch in graph.train[torch.randperm(len(graph.train))].split(256)[:10]:
        scores = model(batch[:, 0], batch[:, 1])
        adam.zero_grad()
        torch.nn.functional.cross_entropy(scores, batch[:, 2]).backward()
        adam.step()
    return model


@pytest.mark.parametrize("integers", [False, True], ids=["trained", "with-ties"])
@pytest.mark.parametrize("score", ["transe-l1", "distmult", "complex", "rotate"])
def test_equals_pykeen(score: str, integers: bool, umls: KnowledgeGraph) -> None:
    pytest.importorskip("pykeen", reason="PyKEEN is the oracle: pip install pykeen")
    torch.manual_seed(0)
    model = KGEModel(umls.num_entities, umls.num_relations, SIZES, score, init_scale=0.5)
    if integers:
        with torch.no_grad():
            model.entity.mul_(2).round_()
            model.relation.zero_() if score == "rotate" else model.relation.mul_(2).round_()
            if score == "rotate":
                model.entity[..., 1] = 0  # moduli are integers then
    else:
        model = trained(model, umls)
    known = KnownTriples(umls.triples, umls.num_entities, umls.num_relations)
    ranks = rank_triples(model, umls.test, known)
    if integers:
        assert (ranks.optimistic_SKT != ranks.pessimistic_SKT).any()
    for k, size in enumerate(SIZES):
        results = pykeen_results(crop(model, size), umls)
        for ties in ("realistic", "optimistic", "pessimistic"):
            ranks_ST = ranks.by_ties(ties)[:, k]
            for side, own in (("tail", ranks_ST[0]), ("head", ranks_ST[1]), ("both", ranks_ST.flatten())):
                for name, value in rank_metrics(own).items():
                    theirs = float(results.get_metric(f"{side}.{ties}.{THEIR_NAMES[name]}"))
                    # PyKEEN averages realistic ranks in float32, which holds 7 digits.
                    assert value.item() == pytest.approx(theirs, rel=1e-6), (size, ties, side, name)
