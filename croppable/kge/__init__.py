"""Knowledge-graph embeddings at every size."""

from croppable.kge.known import KnownTriples
from croppable.kge.model import KGEModel
from croppable.kge.ranking import rank_triples
from croppable.kge.scores import SCORES
from croppable.kge.triples import KnowledgeGraph, graph_from_hub, graph_from_triples, read_graph
from croppable.kge.unicode_graph import unicode_graph

__all__ = [
    "SCORES",
    "KGEModel",
    "KnowledgeGraph",
    "KnownTriples",
    "graph_from_hub",
    "graph_from_triples",
    "rank_triples",
    "read_graph",
    "unicode_graph",
]
