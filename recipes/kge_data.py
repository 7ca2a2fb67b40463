"""What recipes/kge.py reads: the graph, and the model that teaches or is made smaller."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from kge_config import Config

import croppable
from croppable.kge.known import KnownTriples
from croppable.kge.model import KGEModel
from croppable.kge.triples import KnowledgeGraph, graph_from_hub, read_graph
from croppable.kge.unicode_graph import unicode_graph


@dataclass(frozen=True)
class Task:
    """A graph with what is derived from it once, and the model of --teacher."""

    graph: KnowledgeGraph
    train_known: KnownTriples
    all_known: KnownTriples
    teacher: KGEModel | None = None


def load_task(config: Config) -> Task:
    """Load the graph and the teacher that the flags name."""
    if config.data_dir:
        graph = read_graph(config.data_dir, column_order=config.column_order)
    elif config.dataset_name:
        graph = graph_from_hub(
            config.dataset_name, config.dataset_config_name, column_order=config.column_order
        )
    else:
        graph = unicode_graph()
    known = partial(KnownTriples, num_entities=graph.num_entities, num_relations=graph.num_relations)
    teacher = load_teacher(config, graph) if config.teacher else None
    return Task(graph, known(graph.train), known(graph.triples), teacher)


def load_teacher(config: Config, graph: KnowledgeGraph) -> KGEModel:
    """Load the checkpoint of --teacher.

    Raises:
        ValueError: If it is of another graph or score, or smaller than the largest size.
    """
    model = croppable.load(config.teacher)
    what = f"--teacher {config.teacher}"
    if not isinstance(model, KGEModel):
        raise ValueError(
            f"{what} is a {type(model).__name__}: name a checkpoint of a knowledge-graph embedding"
        )
    counts = (model.num_entities, model.num_relations)
    names = None if model.labels is None else (tuple(model.labels.entity), tuple(model.labels.relation))
    if counts != (graph.num_entities, graph.num_relations) or names not in (
        None, (graph.entities, graph.relations)
    ):  # fmt: skip
        raise ValueError(
            f"{what} is of another graph ({counts[0]} entities, {counts[1]} relations) than {graph.name} "
            f"({graph.num_entities} and {graph.num_relations}): its names must be the same, in the same order"
        )
    ours, theirs = (config.model, config.reciprocal), (model.score, model.reciprocal)
    if ours != theirs:
        raise ValueError(
            f"{what} has --model {theirs[0]} --reciprocal {theirs[1]}, and this run {ours[0]} and {ours[1]}: "
            f"give both the same"
        )
    if model.size < config.sizes[-1]:
        raise ValueError(f"{what} has {model.size} dims, fewer than the largest of --sizes {config.sizes}")
    return model
