"""The studies: hand-counted measurements, their sections of the page, and short real runs."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from benchmark_results import write

from croppable import crop
from croppable.kge.known import KnownTriples
from croppable.kge.model import KGEModel
from croppable.kge.ranking import Ranks, rank_triples
from croppable.kge.triples import KnowledgeGraph, read_graph

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def study(recipes: None) -> ModuleType:
    import study_kge

    return study_kge


@pytest.fixture(scope="module")
def measure(recipes: None) -> ModuleType:
    import study_kge_measure

    return study_kge_measure


@pytest.fixture(scope="module")
def sections(recipes: None) -> ModuleType:
    import study_kge_render

    return study_kge_render


# ---------------------------------------------------------------------------------------------- overlap


@pytest.fixture
def toy() -> KnowledgeGraph:
    """Relation 0 is 1-1, relation 1 is N-1; entity 4 has four training triples, the others two."""
    return KnowledgeGraph(
        name="toy",
        entities=("a", "b", "c", "d", "e"),
        relations=("to", "in"),
        train=torch.tensor([[0, 0, 1], [2, 0, 3], [0, 1, 4], [1, 1, 4], [2, 1, 4], [3, 1, 4]]),
        valid=torch.tensor([[0, 0, 2]]),
        test=torch.tensor([[0, 0, 3], [2, 1, 4]]),
    )


@pytest.fixture
def ranks(toy: KnowledgeGraph) -> Ranks:
    """Three sizes; right are q0 at all, q1 at the last, q2 from the second on, q3 at the first and last."""
    tails = [[1, 20], [10, 11], [3, 10]]
    heads = [[11, 5], [2, 30], [10, 4]]
    both = torch.tensor([tails, heads])
    return Ranks(sizes=(2, 4, 8), triples=toy.test, num_entities=5, optimistic_SKT=both, pessimistic_SKT=both)


def test_overlap_equals_what_a_hand_counts(measure: ModuleType, toy: KnowledgeGraph, ranks: Ranks) -> None:
    assert measure.overlap(ranks, toy) == {
        "sizes": [2, 4, 8],
        "right": [2, 2, 4],
        "overlap": [[1.0, 0.5, 1.0], [0.5, 1.0, 1.0], [0.5, 0.5, 1.0]],
        "all": [{"group": "all", "queries": 4, "right_from": [1, 1, 2, 0]}],
        "category": [
            {"group": "1-1", "queries": 2, "right_from": [1, 1, 0, 0]},
            {"group": "N-1", "queries": 2, "right_from": [0, 0, 2, 0]},
        ],
        "frequency": [
            {"group": "0 to 3", "queries": 3, "right_from": [1, 1, 1, 0]},
            {"group": "4 to 10", "queries": 1, "right_from": [0, 0, 1, 0]},
        ],
    }


def test_what_the_largest_size_misses_is_never_right(measure: ModuleType) -> None:
    right_KQ = torch.tensor([[True, False, True], [True, True, False], [False, True, False]])
    assert measure.right_from(right_KQ).tolist() == [3, 1, 3]
    nothing = torch.tensor([[False, False], [True, False]])
    assert measure.overlap_matrix(nothing) == [[None, None], [0.0, 1.0]]


def test_frequency_buckets_end_where_their_names_say(measure: ModuleType) -> None:
    train = torch.tensor([[0, 0, 1]] * 3 + [[2, 0, 3]] * 4 + [[4, 0, 5]] * 101)
    groups = measure.frequency_groups(train, torch.tensor([0, 2, 4, 6]), 7)
    assert [measure.frequency_names()[group] for group in groups] == [
        "0 to 3", "4 to 10", "101 or more", "0 to 3",
    ]  # fmt: skip


def test_one_model_of_all_sizes_and_one_per_size_rank_alike(measure: ModuleType, toy: KnowledgeGraph) -> None:
    torch.manual_seed(0)
    model = KGEModel(toy.num_entities, toy.num_relations, (2, 4, 8), "complex", init_scale=1.0)
    alone = [crop(model, size) for size in (2, 4, 8)]
    singles = [KGEModel(toy.num_entities, toy.num_relations, (m.size,), "complex") for m in alone]
    for single, cropped in zip(singles, alone, strict=True):
        single.load_state_dict({name: cropped.state_dict()[name] for name in single.state_dict()})
    together, apart = measure.rank_models([model], toy), measure.rank_models(singles, toy)
    assert apart.sizes == (2, 4, 8)
    assert torch.equal(together.optimistic_SKT, apart.optimistic_SKT)
    between = measure.rank_models([model], toy, [3, 4])
    known = KnownTriples(toy.triples, toy.num_entities, toy.num_relations)
    expected = rank_triples(crop(model, 3), toy.test, known, sizes=(3,))
    assert between.sizes == (3, 4)
    assert torch.equal(between.optimistic_SKT[:, 0], expected.optimistic_SKT[:, 0])
    mrr = expected.by_ties("realistic").reciprocal().mean().item()
    assert measure.mrr_by_size(between)[3] == pytest.approx(mrr)


# --------------------------------------------------------------------------------- convergence and costs


def test_curves_count_epochs_and_end_where_they_converge(measure: ModuleType) -> None:
    result = {
        "config": {"eval_epochs": 5},
        "validations": [
            {"step": 40, "score": 0.2, "score_2": 0.10, "score_4": 0.3},
            {"step": 80, "score": 0.3, "score_2": 0.19, "score_4": 0.5},
            {"step": 120, "score": 0.3, "score_2": 0.20, "score_4": 0.4},
        ],
    }
    curves = measure.epochs_of(result)
    assert curves == {2: [(5, 0.10), (10, 0.19), (15, 0.20)], 4: [(5, 0.3), (10, 0.5), (15, 0.4)]}
    assert measure.epochs_to(curves[2], 0.95) == 10
    assert measure.epochs_to(curves[2], 0.99) == 15
    assert measure.epochs_to(curves[4], 0.99) == 10
    assert measure.epochs_of({"config": {"eval_epochs": 5}}) == {}


def test_sixty_four_sizes_cost_what_theory_says(measure: ModuleType) -> None:
    sizes = range(10, 641, 10)
    assert measure.derived_costs(sizes, 1) == {"loop": 32.5, "one_pass": (640 + 64) / 641}
    assert measure.derived_costs([640], 2) == {"loop": 1.0, "one_pass": 1.0}
    assert measure.count_parameters(100, 7, [4, 8], "transe-l1") == 107 * 8
    assert measure.count_parameters(100, 7, [8], "complex") == 107 * 8 * 2


# ---------------------------------------------------------------------------------------------- the page


def cell(grid: str, line: str, mrr: dict[int, float], seed: int = 0, **more: Any) -> dict[str, Any]:
    common = {"side": "both", "dataset": "toy", "split": "test"}
    rows = [{"size": size, "metric": metric, "value": value, **common}
            for metric in ("mrr", "hits@10") for size, value in mrr.items()]  # fmt: skip
    config = {"objective": "med", "num_train_epochs": 2, "eval_epochs": 1, "seed": seed}
    return {"grid": grid, "line": line, "seed": seed, "seconds": 60, "rows": rows, "config": config,
            "machine": {"gpu": None, "cpu": "abacus", "threads": 1, "torch": "2"}, **more}  # fmt: skip


def test_ablations_are_compared_on_the_same_seeds(sections: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    weights = [{"step": step, "w1": 1 - step / 100, "w3": 1.0} for step in (0, 10, 20, 30, 40)]
    write(
        folder,
        cell("ablation", "med", {2: 0.50, 4: 0.60}, 0),
        cell("ablation", "med", {2: 0.70, 4: 0.60}, 1),
        cell("ablation", "no-mutual", {2: 0.69, 4: 0.65}, 1),
        cell("ablation", "learnable", {2: 0.40, 4: 0.60}, 0, weights=weights),
    )
    sections.render(folder)
    page = (tmp_path / "study.md").read_text()
    assert "## Ablation: CoDEx-S, ComplEx, softmax over all entities" in page
    assert "| ours | 2 | 0.6000 ± 0.1414 | 0.6000 ± 0.0000 | 1.0 |" in page
    assert "| without mutual learning | -0.0100 | +0.0500 |" in page  # against seed 1 alone
    assert "| w1 and w3 learnable | -0.1000 | +0.0000 |" in page
    assert "| w1 and w3 learnable: w1 | 1.000 | 0.900 | 0.800 | 0.700 | 0.600 |" in page
    assert {path.name for path in folder.glob("*.png")} == {"ablation.png", "ablation-weights.png"}


def test_the_gap_shows_trained_sizes_and_crops_in_between(sections: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    crops = {
        "study": "crops-gap-n3-0",
        "title": "n = 3, 8 times apart",
        "mrr": {"4": 0.1, "8": 0.15, "32": 0.2},
    }
    write(folder, cell("gap", "n3", {4: 0.1, 32: 0.2, 256: 0.3}), crops)
    sections.render(folder)
    page = (tmp_path / "study.md").read_text()
    assert "| n = 3, 8 times apart | 1 | 0.1000 |  |  | 0.2000 |  |  | 0.3000 | 1.0 |" in page
    assert "| n = 3, 8 times apart | 0.1000 | 0.1500 |  | 0.2000 |  |  |  |" in page


def test_overlap_classification_and_convergence_have_their_sections(
    sections: ModuleType, measure: ModuleType, toy: KnowledgeGraph, ranks: Ranks, tmp_path: Path
) -> None:
    about = {"grid": "umls", "line": "med", "graph": "umls", "seed": 0, "title": "MED"}
    rows = [{"size": 2, "value": 0.75}, {"size": 4, "value": 0.875}]
    lines = [{"grid": "umls", "family": "med", "title": "MED", "seed": 0,
              "curves": {"2": [[1, 0.1], [2, 0.2]]}}]  # fmt: skip
    write(
        tmp_path / "study",
        {"study": "overlap-umls-med-0", **about, **measure.overlap(ranks, toy)},
        {"study": "classify-umls-med-0", **about, "rows": rows},
        {"study": "convergence", "lines": lines},
    )
    sections.render(tmp_path / "study")
    page = (tmp_path / "study.md").read_text()
    for text in (
        "| 4 (2 right) | 50.0 | 100.0 | 100.0 |",
        "| all | 4 | 25.0 | 25.0 | 50.0 | 0.0 |",
        "| N-1 | 2 | 0.0 | 0.0 | 100.0 | 0.0 |",
        "| answer in training: 4 to 10 | 1 | 0.0 | 0.0 | 100.0 | 0.0 |",
        "| MED | 0.7500 | 0.8750 |",
        "| MED, our settings, seed 0 | 2 (0.2000) |",
    ):
        assert text in page, text


def test_the_committed_page_is_what_its_files_give(sections: ModuleType, tmp_path: Path) -> None:
    committed = ROOT / "docs" / "results" / "study"
    write(tmp_path / "study")
    for path in committed.glob("*.json"):
        (tmp_path / "study" / path.name).write_text(path.read_text())
    sections.render(tmp_path / "study")
    expected = committed.with_suffix(".md").read_text()
    assert (tmp_path / "study.md").read_text() == expected, "run `python recipes/study_kge.py render`"


# -------------------------------------------------------------------------------------------- the command


def test_a_line_of_the_ablation_switches_off_one_thing(recipes: None, tmp_path: Path) -> None:
    from kge_presets import parse_config
    from study_kge_grids import ABLATION, ABLATION_SAMPLED

    def settings(line: Any) -> dict[str, Any]:
        return vars(parse_config([*line.flags, "--output_dir", str(tmp_path / "out")], ""))

    expected = {
        "no-mutual": {"mutual"}, "no-evolution": {"w1"}, "no-dynamic": {"w3"}, "even-n3": {"n3_balance"},
        "no-scale": {"calibration"}, "no-adversarial": {"adversarial_temperature"}, "nested": {"objective"},
        "learnable": {"learnable_weights"}, "learnable-reciprocal": {"learnable_weights", "evolution_form"},
    }  # fmt: skip
    for grid in (ABLATION, ABLATION_SAMPLED):
        ours = settings(grid.lines[0])
        for line in grid.lines[1:]:
            theirs = settings(line)
            changed = {key for key in ours if ours[key] != theirs[key]}
            assert changed - {"w2"} == expected[line.name]
            assert ours["loss"] == "softmax" or ("w2" in changed) == (line.name == "no-evolution")


def test_other_graphs_do_not_go_into_the_committed_results(study: ModuleType, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        study.main(["ablation", "--graph", "umls"])
    assert "give them another --results" in capsys.readouterr().err


def test_convergence_without_results_says_what_to_run(study: ModuleType, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "study").mkdir()
    assert study.main(["convergence", "--results", str(tmp_path / "study")]) == 1
    assert "run recipes/benchmark_kge.py first" in capsys.readouterr().err


def test_convergence_takes_the_runs_that_validation_chose(study: ModuleType, tmp_path: Path) -> None:
    def run(line: str, first: float, second: float) -> dict[str, Any]:
        validations = [
            {"step": 7, "score": first, "score_2": first},
            {"step": 7, "score": second, "score_4": second},
        ]
        one = cell("umls", line, {2: 0.9, 4: 0.1}, validations=validations)
        return {**one, "config": {**one["config"], "objective": "separate"}}

    write(tmp_path / "kge", run("separate", 0.5, 0.1), run("separate-weak", 0.4, 0.6))
    assert study.main(["convergence", "--results", str(tmp_path / "study")]) == 0
    content = json.loads((tmp_path / "study" / "convergence.json").read_text())
    assert content["lines"][0]["curves"] == {"2": [[1.0, 0.5]], "4": [[1.0, 0.6]]}


def test_complexity_sets_theory_beside_measurements(
    study: ModuleType, data_dir: Path, tmp_path: Path
) -> None:
    where = ["--data_root", str(data_dir / "kg"), "--results", str(tmp_path / "study")]
    assert study.main(["complexity", *where]) == 0
    content = json.loads((tmp_path / "study" / "complexity.json").read_text())
    graph = read_graph(data_dir / "kg" / "fb15k-237")
    rows = {(row["score"], row["n"]): row for row in content["steps"]}
    both = graph.num_entities + graph.num_relations
    assert rows["transe-l1", 64]["parameters"] == both * 640
    assert rows["transe-l1", 64]["parameters_separate"] == both * 640 * 32.5
    assert rows["complex", 64]["loop"] == 32.5
    assert {row["n"] for row in content["memory"]} >= {1, 8, 64}
    assert "## Time and space" in (tmp_path / "study.md").read_text()


@pytest.mark.slow
def test_studies_run_on_a_real_graph(study: ModuleType, data_dir: Path, tmp_path: Path) -> None:
    where = ["--data_root", str(data_dir / "kg"), "--results", str(tmp_path / "study")]
    short = ["--num_train_epochs", "2", "--eval_epochs", "1", "--compile", "none"]
    assert study.main(["gap", *where, "--graph", "umls", "--lines", "n3", "--", *short]) == 0
    crops = json.loads((tmp_path / "study" / "crops-gap-n3-0.json").read_text())
    trained = json.loads((tmp_path / "study" / "gap-n3-0.json").read_text())
    mrr = {row["size"]: row["value"] for row in trained["rows"] if row["metric"] == "mrr"}
    assert set(crops["mrr"]) == {"4", "8", "16", "32", "64", "128", "256"}
    assert all(crops["mrr"][str(size)] == pytest.approx(value, abs=1e-6) for size, value in mrr.items())
    umls = [*where, "--grid", "umls", "--lines", "med"]
    assert study.main(["overlap", *umls]) == 0
    overlap = json.loads((tmp_path / "study" / "overlap-umls-med-0.json").read_text())
    assert overlap["all"][0]["queries"] == 2 * 661
    assert overlap["right"][0] < overlap["right"][-1]
    assert sum(row["queries"] for row in overlap["category"]) == 2 * 661
    assert study.main(["classify", *umls]) == 0  # of the model that overlap has trained
    rows = json.loads((tmp_path / "study" / "classify-umls-med-0.json").read_text())["rows"]
    assert [row["size"] for row in rows] == [2, 4, 8]
    assert all(0.5 < row["value"] <= 1 for row in rows)
