"""`python -m benchmarks.ablation [NAME …]`: the demo's unlearning with one part of its method changed at a time.

Reads the demo's data, base and golds (`make release` leaves them). Each variant unlearns from that base, is scored
without attacks, and answers the forget questions. Settings of the recipe are changed as settings; for what is no
setting, one function or class is replaced while the variant trains. Artifacts lie in `runs/ablation`, so an interrupted
run goes on and a second one only prints. Names of variants choose these alone. Whoever changes what a patch does must
raise VERSION.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple
from unittest import mock

import torch

from benchmarks.releases import STORE
from core.digests import checkpoint_folder
from core.strict import Strict
from datasets_prep.chat import chat_example, encode, load_tokenizer
from datasets_prep.schema import SPLITS, read_paraphrased, read_perturbed, read_rows
from eval import suite
from eval.config import EvalConfig
from eval.records.relative import features, relative_test
from eval.records.rows import row_records, set_records
from eval.schema import read_samples, write_samples
from eval.scoring.harness import ask
from eval.scoring.probes import Scorer, probe
from pipeline.engine.artifact import Artifact, check_artifact, link, read_artifact
from pipeline.engine.live import watching
from pipeline.engine.runner import Stage, Store, build
from pipeline.recipe import load_recipe
from pipeline.stages import stages
from pipeline.unlearn import counterfactual, losses, run, trainer
from pipeline.unlearn.counterfactual import Counterfactual, Levels, Wanted, answer_levels
from pipeline.unlearn.trainer import UnlearnTrainer

DEMO = STORE / "demo"
GOLDS = ("eval-gold", "eval-gold-seed-1", "eval-gold-seed-2")
VERSION = "5"
STRENGTH = 10.0  # UNDIAL's `beta` in the configuration of its authors' method in open-unlearning

Patch = tuple[Any, str, Any]  # a module or class, the name of an attribute, and what takes its place
Samples = list[dict[str, Any]]
Level = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Variant(NamedTuple):
    """What makes the demo's recipe this variant: settings, or a patch of the code."""

    name: str
    label: str
    sets: tuple[str, ...] = ()
    patch: Patch | None = None


class ScoreFacts(Strict):
    """The number of scored rows, or of answers."""

    rows: int


def uniform(log_probs: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Unilogit's level (arXiv 2505.06027), (N,): 1/V."""
    return torch.full_like(log_probs[:, 0], -math.log(log_probs.shape[1]))


def shifted(log_probs: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """UNDIAL's level (arXiv 2402.10052), (N,): base's with :data:`STRENGTH` less on the logit of the true token."""
    places = torch.arange(len(true), device=true.device)
    lower = log_probs.clone()
    lower[places, true] -= STRENGTH
    return lower.log_softmax(dim=1)[places, true]


def at_content(levels: Levels, nats: Iterable[float]) -> Levels:
    """``levels`` with these at the tokens of facts; ends keep theirs."""
    each = zip(levels.content, nats, levels.nats, strict=True)
    return levels._replace(nats=tuple(other if is_content else own for is_content, other, own in each))


def with_level(level: Level) -> type[Counterfactual]:
    """Counterfactuals whose levels come from base's log-probabilities (N, V) at the tokens of a fact (N,)."""

    class OtherLevels(Counterfactual):
        def of(self, rows: Sequence[int], targets: torch.Tensor) -> Wanted:
            log_probs = self.base.logits(rows, targets.device).log_softmax(dim=1)
            nats = iter(level(log_probs, targets).clamp(max=counterfactual.HIGHEST).tolist())
            levels = list(self.levels)
            for row in rows:
                levels[row] = at_content(levels[row], islice(nats, len(levels[row].content)))
            self.levels = levels
            return super().of(rows, targets)

    return OtherLevels


def one_level(*args: Any, **log_probs: Any) -> list[Levels]:
    """The mean of all levels at every token of a fact, in nats: how surprising facts are, and not which words."""
    found = answer_levels(*args, **log_probs)
    mean = fmean(level for row in found for level, content in zip(row.nats, row.content, strict=True) if content)
    return [at_content(row, [mean] * len(row.content)) for row in found]


LOAD_NOVICE, CSD_TERM = run.load_novice, UnlearnTrainer._csd_term


def untaught(config: Any, novice: Path, *rows: Any) -> Any:
    """The start model in the place of the novice that was trained from it."""
    return LOAD_NOVICE(config, of_demo("model").path, *rows)


def pull_alone(trainer: UnlearnTrainer, *args: Any) -> torch.Tensor:
    """The forget term without its KL; the retain term keeps its own."""
    with mock.patch.object(losses, "kl_from_base", return_value=0.0):
        return CSD_TERM(trainer, *args)


def own_form(wanted: Counterfactual, row: int) -> list[counterfactual.Places]:
    """The form tokens in the true answer."""
    return [(row, [place for place, is_content in enumerate(wanted.levels[row].content) if not is_content])]


GRADIENT_DIFFERENCE = (
    *("unlearn.method=gd", "unlearn.retain_weight=32", "unlearn.retain_rows_per_forget_row=2"),
    "unlearn.retain_loss=kl",
)

VARIANTS = (
    Variant("uniform", "level 1/V (Unilogit's)", patch=(run, "Counterfactual", with_level(uniform))),
    Variant("shifted", "level: base's, logit - 10 (UNDIAL's)", patch=(run, "Counterfactual", with_level(shifted))),
    Variant("no-pull", "no pull", ("unlearn.pull_weight=0",)),
    Variant("pull-alone", "no KL at forget tokens", patch=(UnlearnTrainer, "_csd_term", pull_alone)),
    Variant("no-neighbours", "no neighbours", ("unlearn.neighbours=null",)),
    Variant("no-continuations", "no continuations", patch=(run, "read_continuations", lambda folder: [])),
    Variant(
        "no-others",
        "nobody else is asked about",
        patch=(run, "_about_others", lambda _, rows, levels: [()] * len(levels)),
    ),
    Variant("no-form", "no level at other form", patch=(counterfactual, "SURPRISING", -math.inf)),
    Variant("no-aim", "the pull aims at the levels themselves", patch=(trainer, "AIM_RATE", 0.0)),
    Variant("one-level", "one level for all tokens of facts", patch=(run, "answer_levels", one_level)),
    Variant("untaught", "the start model in the novice's place", patch=(run, "load_novice", untaught)),
    Variant(
        "unmapped",
        "the novice's own log-probabilities as levels",
        patch=(counterfactual, "_level_map", lambda base, novice: lambda of_true: of_true),
    ),
    Variant(
        "untold", "the rest as base says it, not the novice", patch=(Counterfactual, "_told_by_novice", lambda *_: {})
    ),
    Variant("no-false", "false answers are free to rise", patch=(run, "draw_alternates", lambda pairs, *_: pairs)),
    Variant(
        "no-ends", "no level where a fact ends", patch=(counterfactual, "_ends", lambda tokens: (False,) * len(tokens))
    ),
    Variant("ascent", "ascent as the forget term (Gradient Difference)", GRADIENT_DIFFERENCE),
    Variant("own-form", "form as base says it in the true answer", patch=(Counterfactual, "_form", own_form)),
    Variant(
        "lora",
        "LoRA of rank 16, rate 2e-3",
        ("unlearn.lora={r: 16, alpha: 16}", "unlearn.train_from_layer=0", "unlearn.args.learning_rate=0.002"),
    ),
    Variant("csd", "nothing: the demo's once more"),
)


def scores(config: EvalConfig, inputs: Mapping[str, Path], out: Path) -> ScoreFacts:
    """Write the samples that an evaluation without generations and attacks has of ``inputs["model"]``."""
    checkpoint, data = checkpoint_folder(inputs["model"]), inputs["data"]
    tokenizer = load_tokenizer(checkpoint)
    rows = [(split, row) for split in SPLITS for row in read_rows(data / f"{split}.jsonl")]
    probed = probe(
        Scorer(suite.load(checkpoint, config.device), config.batch_tokens),
        [row for _, row in rows],
        read_perturbed(data / "perturbed.jsonl"),
        lambda question, answer: encode(tokenizer, chat_example(tokenizer, question, answer)),
        config.min_k,
        {row.row_id: row.answer for row in reversed(read_paraphrased(data / "paraphrased.jsonl"))},
    )
    write_samples(
        out / "samples.jsonl",
        [
            {"row_id": row.row_id, "split": split, "language": row.language, "topic_id": row.topic_id}
            | probed[row.row_id]
            for split, row in rows
        ],
    )
    return ScoreFacts(rows=len(rows))


def answers(config: EvalConfig, inputs: Mapping[str, Path], out: Path) -> ScoreFacts:
    """Write what ``inputs["model"]`` answers to the forget questions, and how fluent it is, as an evaluation has it."""
    checkpoint, data = checkpoint_folder(inputs["model"]), inputs["data"]
    scorer = Scorer(suite.load(checkpoint, config.device), config.batch_tokens)
    asked = ask(scorer, load_tokenizer(checkpoint), data=data, splits=["forget"], config=config).rows
    forget, (questions, _) = read_rows(data / "forget.jsonl"), suite.general_questions()
    rows = [row for split in SPLITS for row in read_rows(data / f"{split}.jsonl")]
    said = ((row, asked[row.row_id]["generation"]) for row in forget)
    samples = [{"row_id": row.row_id, "language": row.language, "generation": text} for row, text in said]
    suite.add_fluency(samples, [*rows, *questions], read_perturbed(data / "perturbed.jsonl"))
    write_samples(out / "samples.jsonl", samples)
    return ScoreFacts(rows=len(forget))


def patched(patch: Patch | None) -> AbstractContextManager[Any]:
    """Replaces what ``patch`` names inside a ``with`` block."""
    return mock.patch.object(*patch) if patch else nullcontext()


def stages_of(variant: Variant) -> list[Stage]:
    """The unlearning of a variant, and its scores."""
    recipe = load_recipe("demo", variant.sets)
    plain = next(stage for stage in stages(recipe) if stage.name == "unlearn")

    def unlearn(config: Any, inputs: Mapping[str, Path], out: Path) -> Strict:
        with patched(variant.patch):
            return plain.run(config, inputs, out)

    patch = {"patch": variant.name, "patch_version": VERSION} if variant.patch else {}
    identity = {"min_k": recipe.eval.min_k, "batch_tokens": recipe.eval.batch_tokens}
    length, reads = {"max_new_tokens": recipe.eval.max_new_tokens}, {"model": "unlearn", "data": "data"}
    return [
        replace(plain, run=unlearn, identity={**plain.identity, **patch}),
        Stage("scores", VERSION, scores, recipe.eval, identity, reads),
        Stage("answers", VERSION, answers, recipe.eval, length, reads),
    ]


def made(variant: Variant) -> dict[str, Artifact]:
    """The artifacts of a variant and those of the demo that it reads; what is not there yet is built."""
    store, done = Store(STORE / "ablation", variant.name), {}
    for stage in stages_of(variant):
        for name in stage.inputs.values():
            if name not in done:
                done[name] = of_demo(name)
        artifact = store.status(stage, done).artifact
        if artifact is None:
            with watching(f"{variant.name} {stage.name}"), redirect_stdout(sys.stderr):
                artifact = build(stage, store, done)
        link(artifact.path, store.link(stage.name))
        done[stage.name] = artifact
    return done


def of_demo(stage: str) -> Artifact:
    """The demo's artifact of a stage."""
    artifact = read_artifact(DEMO / stage)
    if artifact is None:
        raise SystemExit(f"{DEMO / stage} is not there. Run `make release` first.")
    check_artifact(artifact)
    return artifact


def read_scores(folder: Path, of_answers: Path | None = None) -> Samples:
    """The samples of an evaluation, without what the relative test reads of answers; or of scores and of answers."""
    answered = {row["row_id"]: row for row in read_samples(of_answers / "samples.jsonl")} if of_answers else {}
    samples = [row | answered.get(row["row_id"], {}) for row in read_samples(folder / "samples.jsonl")]
    return [{k: v for k, v in row.items() if k != "rouge_l_recall"} for row in samples]


def line(
    label: str, samples: Samples, base: Samples, golds: Sequence[Samples], config: EvalConfig, seconds: float | None
) -> str:
    """One line of the table. A gold must not be among the ``golds`` that it is compared with."""
    clouds = features({"model": samples, "base": base, **{str(i): gold for i, gold in enumerate(golds)}})
    test = relative_test(clouds["model"], clouds["base"], [clouds[str(i)] for i in range(len(golds))])
    names = ("mia_min_k_auc", "mia_min_k_plus_plus_auc", "forget_quality")
    sets = {r.metric: r.value for name in names for r in set_records(samples, golds[0], config, name)}
    probability, of_base = (_means(each, "answer_probability", config) for each in (samples, base))
    kept = [f"{probability[split] / of_base[split]:.3f}" for split in ("retain", "unrehearsed")]
    cells = [
        f"{probability['forget']:.3f}",
        f"{_means(samples, 'extraction_strength', config)['forget']:.3f}",
        *(f"{sets[name]:.3f}" for name in names[:2]),
        f"{test.leak:.3f} ({test.bound:.3f})",
        f"{test.damage:.3f}",
        f"{sets['forget_quality']:.2g}",
        f"{_means(samples, 'fluency', config)['forget']:.3f}",
        *kept,
        "–" if seconds is None else f"{seconds:.0f}",
    ]
    return f"| {label} | {' | '.join(cells)} |"


def _means(samples: Samples, metric: str, config: EvalConfig) -> dict[str, float]:
    return {record.split: record.value for record in row_records(samples, config, metric)}


def table(variants: Iterable[Variant]) -> Iterator[str]:
    """Base, gold (against the other golds), the demo's release, then each variant as soon as it is measured."""
    config = load_recipe("demo").eval
    base, demo, *golds = (read_scores(of_demo(name).path) for name in ("eval-base", "eval-unlearned", *GOLDS))
    heads = ["forget", "extraction strength", "min-k", "min-k++", "leak (upper end)", "damage", "KS p", "fluency"]
    heads += ["retain / base's", "unrehearsed / base's", "seconds"]
    yield f"| changed | {' | '.join(heads)} |"
    yield f"|---|{'--:|' * len(heads)}"
    yield line("base", base, base, golds, config, None)
    yield line("gold, against the two others", golds[0], base, golds[1:], config, None)
    yield line("the demo's release (csd)", demo, base, golds, config, of_demo("unlearn").manifest.seconds)
    for variant in variants:
        found = made(variant)
        seconds = found["unlearn"].manifest.seconds
        samples = read_scores(found["scores"].path, found["answers"].path)
        yield line(variant.label, samples, base, golds, config, seconds)


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    options.add_argument("names", nargs="*", metavar="NAME")
    names, known = options.parse_args().names, {variant.name: variant for variant in VARIANTS}
    if unknown := [name for name in names if name not in known]:
        options.error(f"there is no variant {unknown[0]}. Give some of {', '.join(known)}, or none for all.")
    for text in table([known[name] for name in names or known]):
        print(text, flush=True)


if __name__ == "__main__":
    main()
