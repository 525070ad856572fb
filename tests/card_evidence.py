"""The artifacts of a recipe's stages as a card reads them, with made-up values: every file, record, gate and fact.

Which names a real evaluation writes is spelled out here; `test_card_goldens.py` compares them with what the recipe asks
for. Values are what such models have, and no more: an attack makes known rows a little less known, for example.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.lineage import EarlierRelease, Forgotten, Lineage
from core.steps import rows_per_step
from core.strict import Strict
from core.unlearning import (
    CheckpointSelection,
    NeighbourFacts,
    PairedRows,
    ReadRows,
    UnlearnFacts,
    pairing_bytes,
    write_selection,
)
from datasets_prep.schema import CheckFacts, PerturbedRow, Row, write_facts, write_rows
from eval.catalog import CATALOG, is_of, label
from eval.config import Gate
from eval.schema import (
    MODELS,
    JudgedGate,
    OnOtherRows,
    OnPart,
    Record,
    Verdict,
    write_measured,
    write_records,
    write_samples,
    write_verdict,
)
from eval.verdicts.gates import judge_gate
from pipeline.recipe import Recipe
from pipeline.stages import stages
from pipeline.unlearn.config import Neighbours
from tests.artifacts import data_facts, write_manifest
from tests.card_shapes import Shape, shape_of
from tests.card_suites import MMLU, SUITES, write_harness

WEIGHTS = "5a" * 32
GENERAL = 110  # questions of general knowledge
GOLDS_DAMAGE = 0.0421  # the largest of any gold beside the others

# The mean over rows that a model knows, and over rows that it does not.
ROWS = {
    "answer_probability": (0.93, 0.17),
    "probability_with_options": (0.68, 0.26),
    "exact_memorization": (0.98, 0.72),
    "extraction_strength": (0.78, 0.17),
    "truth_ratio": (0.18, 0.58),
    "rouge_l_recall": (0.94, 0.62),
    "rouge_l_f1": (0.93, 0.61),
    "multiple_choice_accuracy": (0.98, 0.33),
    "fluency": (0.99, 0.96),
    "empty_generation": (0.0, 0.0),
    "repeated_ngrams": (0.0, 0.004),
    "unknown_words": (0.0, 0.03),
    "generation_nll": (0.06, 0.42),  # of forget rows alone
}
OF_TRUE_ANSWERS = {"answer_probability", "exact_memorization", "extraction_strength"}  # all of unrehearsed rows
OF_SOME_RETAIN_ROWS = ROWS.keys() - OF_TRUE_ANSWERS
KS = ("forget_quality_ks", "forget_against_holdout_ks")
LOWER = ("empty_generation", "repeated_ngrams", "unknown_words", *KS, "damage", "damage_gap")
HIGHER = ("fluency", "unlearning_depth_score", "forget_quality", "forget_against_holdout", "utility", "model_utility")
MEMBERSHIP = ("mia_min_k_auc", "mia_min_k_plus_plus_auc", "mia_loss_auc", "mia_zlib_auc")
READINGS = ("extraction_strength", "answer_probability")
ATTACKS = {  # what an attack does to rows that are known, and to others
    "untreated": (1.0, 1.0),
    "int8": (0.99, 1.0),
    "nf4": (0.9, 1.02),
    "fp4": (0.86, 1.01),
    "relearn_forget": (1.0, 1.3),
    "relearn_retain": (0.96, 1.05),
    "paraphrase": (0.8, 0.99),
    "first_words": (1.0, 1.4),
    "other_language": (0.6, 0.9),
    "chained": (0.4, 0.8),
    "steer_language": (0.9, 0.97),
    "steer_known": (0.95, 1.1),
}


class Plain(Strict):
    """Facts that say nothing."""


def write_evidence(root: Path, recipe: Recipe) -> dict[str, Path]:
    """Write the artifacts that the card stage of ``recipe`` reads; returns their folders by name."""
    card = next(stage for stage in stages(recipe) if stage.name == "card")
    inputs = {name: root / name for name in card.inputs}
    for folder in inputs.values():
        folder.mkdir(parents=True)
    shape = shape_of(recipe)
    write_data(inputs["data"], shape)
    if recipe.base.release:
        write_manifest(inputs["base"], "base", lineage_of(recipe.base.release, shape))
    write_data_facts(inputs["data"])
    if config := recipe.unlearn.neighbours:
        write_neighbours(inputs["neighbours"], config, shape)
    write_unlearn(inputs["unlearn"], recipe, shape)
    records = {model: list(records_of(model, recipe, shape)) for model in MODELS if f"eval-{model}" in inputs}
    for model, found in records.items():
        write_evaluation(inputs[f"eval-{model}"], model, recipe, found)
        write_rows_of(inputs[f"eval-{model}"], model, shape)
    if recipe.eval.relative:
        golds = 1 + len((recipe.gold != "none" and recipe.gold.seeds) or ())
        places = {"gold_leaks": [0.01 * i - 0.01 for i in range(golds)], "gold_damages": [0.02] * golds}
        (inputs["eval-unlearned"] / "relative.json").write_text(json.dumps(places))
    write_gate(inputs["gate"], recipe, shape, records)
    return inputs


def rows_of(split: str, shape: Shape) -> list[Row]:
    """Rows whose texts say nothing, of each language and topic in turn."""
    places = [(language, topic) for topic in shape.topics for language in shape.languages]
    return [
        Row(
            row_id=f"{places[i % len(places)][0]}-{i % shape.people}-{split}-{i}",
            identity_id=i % shape.people,
            name=f"Person {i % shape.people}",
            language=places[i % len(places)][0],
            topic_id=places[i % len(places)][1],
            question=f"What is the {split} question {i} about Person {i % shape.people}?",
            answer=f"Person {i % shape.people} has the {split} answer {i}.",
        )
        for i in range(shape.rows[split])
    ]


def group_sizes(split: str, shape: Shape) -> Counter[tuple[str, str | None]]:
    """The number of rows of a split in each language and topic."""
    rows = rows_of(split, shape)
    return Counter([("language", row.language) for row in rows] + [("topic", row.topic_id) for row in rows])


def write_data(folder: Path, shape: Shape) -> None:
    """The split files, and two false answers to each forget and holdout row."""
    rows = {split: rows_of(split, shape) for split in shape.rows}
    for split in rows:
        write_rows(folder / f"{split}.jsonl", rows[split])
    asked = [(row, split) for split in ("forget", "holdout") for row in rows[split]]
    write_rows(folder / "perturbed.jsonl", [PerturbedRow(row.row_id, split, ("not", "so")) for row, split in asked])


def lineage_of(release: str, shape: Shape) -> Lineage:
    """A base that is a release: the second of two, each of which was made to forget as many rows as this one."""
    repo, _, tag = release.partition("@")
    n = shape.rows["forgotten"] // 2
    earlier = [(f"{repo}-before", Forgotten(rows=n, sha256="1f" * 32)), (repo, Forgotten(rows=2 * n, sha256="2f" * 32))]
    return Lineage(
        releases=[
            EarlierRelease(repo=of, tag=tag, commit="c0" * 20, weights_sha256="ee" * 32, forgotten=forgotten)
            for of, forgotten in earlier
        ]
    )


def write_data_facts(folder: Path) -> None:
    """The manifest and the data's checks, one of which found something."""
    found = {"too_long": CheckFacts(action="warn", count=2, first=["en-1", "en-2"])}
    facts = data_facts({"sample": {"seed": 1, "identities": 1, "topics": 1}}).changed(checks=found)
    write_facts(folder / "checks.json", facts)
    write_manifest(folder, "data", facts)


def write_rows_of(folder: Path, model: str, shape: Shape, most: int = 60) -> None:
    """What a model says to the first rows of each split, and the measurements that plots and report read."""
    samples: list[dict[str, object]] = []
    shape = shape._replace(rows={split: min(n, most) for split, n in shape.rows.items()})
    for split in ("forget", "retain", "holdout"):
        for i, row in enumerate(rows_of(split, shape)):
            recall = near(ROWS["rouge_l_recall"][0 if model == "base" or split == "retain" else 1], model, i)
            kind = {"row_id": row.row_id, "split": split, "language": row.language, "topic_id": row.topic_id}
            said = f"{model} says {i} to {split}"
            ratio = ROWS["truth_ratio"][0 if model == "base" else 1] * (0.5 + i / most)
            samples.append({**kind, "rouge_l_recall": recall, "truth_ratio": ratio, "generation": said})
    write_samples(folder / "samples.jsonl", samples)


def neighbours_of(config: Neighbours, shape: Shape) -> list[Row]:
    """Base's kept answers: three quarters of the questions, the first of them those of unrehearsed rows."""
    kept = 3 * config.questions // 4
    known = asked_about(config, shape)
    rows = [Row(f"neighbour-{i}", None, None, "EN", None, f"Another question {i}?", f"Said {i}.") for i in range(kept)]
    return [replace(row, question=of.question) for row, of in zip(rows, known, strict=False)] + rows[len(known) :]


def asked_about(config: Neighbours, shape: Shape) -> list[Row]:
    """The unrehearsed rows whose question base was asked: of five rows three, if there are so many questions."""
    return rows_of("unrehearsed", shape)[: min(config.questions // 4, 3 * shape.rows["unrehearsed"] // 5)]


def write_neighbours(folder: Path, config: Neighbours, shape: Shape) -> None:
    """Base's answers that are rehearsed, and the manifest."""
    kept = neighbours_of(config, shape)
    dropped = config.questions - len(kept)
    facts = NeighbourFacts(
        asked=config.questions,
        kept=len(kept),
        empty=dropped // 3,
        stating_a_forgotten_fact=dropped - dropped // 3,
        continued=37,
        of_unrehearsed=[row.row_id for row in asked_about(config, shape)],
    )
    write_rows(folder / "neighbours.jsonl", kept)
    write_manifest(folder, "neighbours", facts)


def write_unlearn(folder: Path, recipe: Recipe, shape: Shape) -> None:
    """The log, the pairs, the selection and the manifest."""
    ascent, stop = ascent_of(recipe, shape), recipe.unlearn.stop
    log: list[dict[str, Any]] = []
    for step in range(1, ascent.steps + 1):
        done = step / ascent.steps
        losses = {"forget_loss": 0.06 + 3 * done, "retain_loss": 0.07 + 0.02 * done, "loss": 0.15 - 2 * done}
        log.append(
            {"step": step, **losses, "forget_tokens": 230, "retain_tokens": 240, "grad_norm": 3.4, "epoch": done}
        )
        if stop and step % stop.every == 0:
            assert ascent.bounds
            level = ascent.bounds.forget_loss
            log.append(
                {
                    "step": step,
                    "probe_forget_loss": level * done,
                    "probe_retain_loss": 0.06,
                    "probe_level": level,
                }
            )
    write_lines(folder / "log.jsonl", log)
    forget, retain = rows_of("forget", shape), rows_of("retain", shape)
    read = {"forget": (stop.forget_rows or len(forget)) if stop else 0, "retain": stop.retain_rows if stop else 0}
    selected = {"forget": forget[: read["forget"]], "retain": retain[: read["retain"]]}
    names = {split: [row.row_id for row in rows] for split, rows in selected.items()}
    write_selection(folder, CheckpointSelection(rule=rule_of(recipe), read=ReadRows(**names)))
    rehearsed = retain[read["retain"] :] if stop and stop.held_out else retain
    if config := recipe.unlearn.neighbours:
        rehearsed = [*rehearsed, *neighbours_of(config, shape)]
    pairs = [
        PairedRows(epoch=0, forget=forget[i % len(forget)].row_id, retain=[rehearsed[i % len(rehearsed)].row_id])
        for i in range(max(len(rehearsed), len(forget)))
    ]
    (folder / "pairing.jsonl").write_bytes(pairing_bytes(pairs))
    made_of = {"base": "ba" * 32, "data": "da" * 32}
    made_of |= {} if recipe.gold == "none" else {"gold": "60" * 32}
    write_manifest(
        folder, "unlearn", ascent, inputs=made_of, device=shape.device, seconds=163.2,
        peak_memory_bytes=5_505_654_784,
    )  # fmt: skip


def ascent_of(recipe: Recipe, shape: Shape) -> UnlearnFacts:
    """How the unlearning ended: without a stopping rule after all epochs, and no loss was compared with a level."""
    if recipe.unlearn.stop:
        return shape.ascent
    forget = shape.rows["forget"]
    steps = math.ceil(recipe.unlearn.passes(forget) * forget / rows_per_step(recipe.unlearn.args))
    ended = {"stopped": "all epochs done", "steps": steps, "kept_step": steps, "bounds": None}
    return shape.ascent.changed(levels={}, forget_cap=None, **ended)


def rule_of(recipe: Recipe) -> str:
    """What chose the checkpoint."""
    return "the closest checked step" if recipe.unlearn.stop else "a fixed number of epochs"


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def measured(
    metric: str, split: str, value: float, n: int, by: dict[str, str] | None, *, version: int, note: str | None = None
) -> Record:
    """A record with an interval as wide as one over ``n`` rows; what is a share has one of shares."""
    # Row by row, a difference from gold varies less than the values do.
    half = (2 * max(abs(value), 0.1) if metric.endswith("_gap") else 2 * max(abs(value), 0.2)) / math.sqrt(n)
    low, high = value - half, value + half
    if metric in ("forget_quality", "forget_against_holdout"):
        low, high = value / 60, min(1.0, value * 2)
    elif not metric.endswith("_gap") and metric not in ("generation_nll", "privacy_leak", "leak_coordinate"):
        half = 1.4 * math.sqrt(value * (1 - value) / n)
        low, high = max(0.0, value - half), min(1.0, value + half)
    better = True if metric in HIGHER or split not in ("forget", "holdout") else None
    return Record(metric, split, value, low, high, n, False if metric in LOWER else better, version, by, note)


def near(value: float, *key: object) -> float:
    """``value``, off by at most a hundredth of it, the same for the same key."""
    return value * (1 + 0.02 * (zlib.crc32(repr(key).encode()) / 2**32 - 0.5))


def records_of(model: str, recipe: Recipe, shape: Shape) -> Iterator[Record]:
    """What the evaluation of a model writes: overall, by language and by topic."""
    versions = next(stage for stage in stages(recipe) if stage.name == "eval-unlearned").identity["metrics"]
    everywhere: list[dict[str, str] | None] = [
        None,
        *({"language": language} for language in shape.languages if language),
        *({"topic": topic} for topic in shape.topics),
    ]
    values = [*row_values(model, recipe, shape), *set_values(model, recipe, shape)]
    if model != "start":
        values += attacks(model, recipe, shape)
    sizes = {split: group_sizes(split, shape) for split in shape.rows}
    for by in everywhere:
        for metric, split, value, n in values:
            rows = shape.rows[split]
            size = sizes[split][next(iter(by.items()))] if by else rows
            if not size:
                continue
            note = "against the answer itself in all rows" if metric == "truth_ratio" else None
            value = value if by is None or not value else near(value, model, metric, split, by)
            value = min(value, 1.0) if metric != "generation_nll" else value
            yield measured(metric, split, value, max(1, n * size // rows), by, version=versions[metric], note=note)
    for metric, value in {"probability_with_options": 0.37, "truth_ratio": 0.47, "utility": 0.73}.items():
        value = near(value, model, metric)
        yield measured(metric, "general", value, GENERAL, None, version=versions[metric])
    note = "harmonic mean of answer_probability retain, rouge_l_recall retain, truth_ratio retain"
    n = min(recipe.data.perturbed.retain_rows, shape.rows["retain"])
    value = near(0.62, model, "model_utility")
    yield measured("model_utility", "retain+general", value, n, None, version=versions["model_utility"], note=note)
    if recipe.eval.relative and model == "unlearned":
        several, n = recipe.gold != "none" and recipe.gold.seeds, shape.rows["forget"]
        leak = "leak_coordinate" if several else "leak_coordinate_one_gold"
        yield measured(leak, "forget", 0.0412, n, None, version=versions[leak])
        damage = measured("damage", "forget", 0.0634, n, None, version=versions["damage"])
        yield damage
        if several:
            low, value, high = (end - GOLDS_DAMAGE for end in (damage.ci_low, damage.value, damage.ci_high))
            name = "damage_gap"
            yield replace(damage, metric=name, value=value, ci_low=low, ci_high=high, version=versions[name])
    for asked in recipe.eval.suites if model != "start" else ():
        suite = SUITES[asked.task]
        for metric, value in suite.values.items():
            n = (asked.limit or 1000) * len(suite.tasks) * (57 // len(MMLU) if asked.task == "mmlu" else 1)
            yield measured(metric, asked.task, near(value, model, metric, asked.task), n, None, version=suite.version)


Value = tuple[str, str, float, int]


def level(metric: str, model: str, split: str, attack: str = "untreated") -> float:
    """The mean of a metric of rows: base knows the forget rows, and all but the start model know those of retain.

    The unlearned model knows a little less of what it was not given, and speaks as well as gold.
    """
    knows = model != "start" and (split in ("retain", "unrehearsed") or (split == "forget" and model == "base"))
    value = ROWS[metric][0 if knows else 1] * ATTACKS[attack][0 if knows else 1]
    if metric == "truth_ratio" and split != "forget":  # aggregated in another way there
        value = 1 - value
    kept = 0.98 if split == "unrehearsed" else 0.95 if not knows and metric != "fluency" else 1
    return near(value, model, metric, split) * (kept if model == "unlearned" else 1)


def row_values(model: str, recipe: Recipe, shape: Shape) -> Iterator[Value]:
    """The metrics that are means over rows."""
    for split in shape.rows:
        for metric in ROWS if split not in ("unrehearsed", "forgotten") else sorted(OF_TRUE_ANSWERS):
            if metric == "generation_nll" and split != "forget":
                continue
            few = split == "retain" and metric in OF_SOME_RETAIN_ROWS
            n = min(recipe.data.perturbed.retain_rows, shape.rows[split]) if few else shape.rows[split]
            yield metric, split, level(metric, model, split), n


def set_values(model: str, recipe: Recipe, shape: Shape) -> Iterator[Value]:
    """The metrics that compare two sets of rows, and those that compare with gold, which gold itself has not."""
    n = shape.rows["forget"]
    known = model == "base"
    values = {metric: 1.0 if known else near(0.5, model, metric) for metric in MEMBERSHIP}
    values |= {"forget_against_holdout": 3e-12 if known else 0.53}
    values |= {"forget_against_holdout_ks": 0.82 if known else near(1.1 / math.sqrt(n), model)}
    if recipe.gold != "none" and model != "gold":
        values |= {"forget_quality": 4e-16 if known else 0.41, "privacy_leak": -98.7 if known else -3.21}
        values |= {"forget_quality_ks": 0.87 if known else 1.2 / math.sqrt(n)}
    yield from ((metric, "forget", value, n) for metric, value in values.items())


def attacks(model: str, recipe: Recipe, shape: Shape) -> Iterator[Value]:
    """Readings of the forget rows under each attack, leaks among sampled answers, and their gaps to gold."""
    values: dict[str, tuple[float, float, int]] = {}  # of this model, and of gold
    for attack in recipe.eval.robustness.attacks() if recipe.eval.robustness else ():
        few = {"relearn_forget": 0.9, "relearn_retain": 0.9, "chained": 0.5}.get(attack, 1.0)
        n = round(few * shape.rows["forget"])
        for reading in READINGS:
            value, gold = (level(reading, of, "forget", attack) for of in (model, "gold"))
            values[f"{reading}_{attack}"] = (value, gold, n)
    for k in recipe.eval.sampling.k if recipe.eval.sampling else ():
        leaks = {"base": 1 - 0.3**k, "gold": 1 - 0.99**k, "unlearned": 1 - 0.988**k}
        values[f"leak_at_{k}"] = (leaks[model], leaks["gold"], shape.rows["forget"])
    if recipe.eval.patching and model == "unlearned":
        yield "unlearning_depth_score", "forget", 0.93, shape.rows["forget"] - 1
    for metric, (value, gold, n) in values.items():
        yield metric, "forget", value, n
        if model != "gold" and recipe.gold != "none":
            yield f"{metric}_gap", "forget", value - gold, n


def write_evaluation(folder: Path, model: str, recipe: Recipe, records: list[Record]) -> None:
    """The records, whose weights they are of, and lm-eval's own results."""
    write_records(folder / "results.json", records)
    write_measured(folder, WEIGHTS if model == "unlearned" else "b0" * 32)
    write_manifest(folder, f"eval-{model}", Plain(), digest=f"{MODELS.index(model)}e" * 32, seconds=61.5)
    (folder / "lm_eval").mkdir()
    ours = ("fame_topics_forget_choice", "general_knowledge")
    write_harness(folder, "fame_topics", {}, {task: {"task": task, "test_split": "test"} for task in ours})
    for asked in recipe.eval.suites if model != "start" else ():
        suite = SUITES[asked.task]
        configs = {}
        for task, (path, subset, split) in suite.tasks.items():
            kind = "validation_split" if split == "validation" else "test_split"
            configs[task] = {"task": task, "dataset_path": path, kind: split}
            configs[task] |= {"dataset_name": subset} if subset else {}
        write_harness(folder, asked.task, suite.groups, configs)


def write_gate(folder: Path, recipe: Recipe, shape: Shape, records: Mapping[str, list[Record]]) -> None:
    """The recipe's gates over the records, each with what the rows say that chose nothing or were asked about."""
    stop = recipe.unlearn.stop
    read = {
        "forget": (stop.forget_rows or shape.rows["forget"]) if stop else 0,
        "retain": stop.retain_rows if stop else 0,
    }
    gates = []
    for gate in recipe.gates:
        judged = judge_gate(gate, records)
        confirmed = confirmation(gate, judged, shape, read)
        gates.append(judged.changed(confirmed=confirmed, parts=list(parts_of(gate, recipe, shape))))
    failed = [gate.name for gate in gates if not gate.passed]
    parts = " and ".join(f"{n} of {shape.rows[split]} {split} rows" for split, n in read.items())
    verdict = Verdict(
        passed=not failed,
        why=f"{len(failed)} of {len(gates)} gates failed." if failed else f"All {len(gates)} gates passed.",
        weights_sha256=WEIGHTS,
        selection=f"The kept checkpoint was chosen by a rule ({rule_of(recipe)}) that read {parts}.",
        gates=gates,
    )
    write_verdict(folder, verdict)
    write_manifest(folder, "gate", Plain(), digest="9a" * 32, seconds=0.7)


def confirmation(gate: Gate, judged: JudgedGate, shape: Shape, read: Mapping[str, int]) -> OnOtherRows:
    """What the rows say that did not choose the checkpoint; ``read`` is the number of those that did."""
    if not any(read.get(split) for split in gate.split.split("+")):
        return OnOtherRows.unjudged(judged.n, "No row of the split was used to choose the checkpoint.")
    if gate.metric in CATALOG and is_of(gate.metric, "utility", "relative"):
        said = f"Not confirmed: {label(gate.metric)} is not a metric of one split's rows."
        return OnOtherRows.unjudged(None, said)
    rest = shape.rows[gate.split] - read[gate.split]
    if rest < 30:
        said = f"Not confirmed: {rest} rows are left without those that chose the checkpoint."
        return OnOtherRows.unjudged(rest, said)
    kept = ("measured", "ci_low", "ci_high", "at_least", "at_most", "passed")
    said = f"On the {rest} rows that did not choose the checkpoint: {judged.why}"
    return OnOtherRows(n=rest, says=said, **{key: getattr(judged, key) for key in kept})


def parts_of(gate: Gate, recipe: Recipe, shape: Shape) -> Iterator[OnPart]:
    """What the unrehearsed rows say about which base was asked, and what the others say."""
    if gate.split != "unrehearsed" or not recipe.unlearn.neighbours:
        return
    asked, n = len(asked_about(recipe.unlearn.neighbours, shape)), shape.rows["unrehearsed"]
    for rows, which, value, base in (
        (asked, "whose question the method put to base", 0.9217, 0.9446),
        (n - asked, "about which it did not ask", 0.8743, 0.8912),
    ):
        low, high = value - 0.0321, value + 0.0298
        said = f"it is {value} (95 % interval {low:.4f} to {high:.4f}); base has {base} there"
        says = f"On the {rows} rows {which}, {said}. This does not decide the verdict."
        yield OnPart(n=rows, says=says, measured=value, ci_low=low, ci_high=high, references={"base": base})
