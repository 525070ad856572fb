"""lm-evaluation-harness on the project's own tasks (``eval/tasks``): generation with ROUGE-L, and multiple choice.

The tasks also run under lm-eval's own command (see ``eval/tasks/fame_topics.yaml``). Here log-probabilities come from
the packed forward of the probes. Prompts are rendered by the checkpoint's own chat template, as in training.
lm-eval's cache is not used: it is keyed without the model, so two models would share scores.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lm_eval import evaluate
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.errors import SystemLimitError
from core.progress import report
from core.ranks import first_ranks, rank, world_size
from datasets_prep.schema import Encoded, read_perturbed
from eval.catalog import DATA
from eval.config import VLLM_SHARE, EvalConfig
from eval.scoring.batches import cache_bytes, in_batches, logits_bytes
from eval.scoring.packed_linear import packed
from eval.scoring.probes import Scorer

TASKS = Path(__file__).parents[1] / "tasks"
GENERAL = "general_knowledge"
Request = tuple[tuple[str, str], list[int], list[int]]
"""Texts and tokens of a context and its continuation, as lm-eval passes them on."""


@dataclass(frozen=True)
class Answers:
    """Measurements by ``row_id``: generation, ROUGE-L, multiple choice; ``utility`` (0 or 1) of a general question.

    ``results`` are lm-eval's own, without samples.
    """

    rows: dict[str, dict[str, Any]]
    results: dict[str, Any]


class BoundedLM(HFLM):
    """lm-eval's Hugging Face model in batches whose memory is bounded; lm-eval itself only counts their rows."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_rows: int) -> None:
        super().__init__(
            pretrained=model,  # type: ignore[arg-type]
            tokenizer=tokenizer,  # type: ignore[arg-type]
            batch_size=batch_rows,
            softmax_dtype="float32",
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], *_options: Any, **_more: Any
    ) -> list[tuple[float, bool]]:
        forwards: dict[tuple[int, ...], list[int]] = {}  # continuations of one token share one
        for place, (_, context, continuation) in enumerate(requests):
            forwards.setdefault((*context, *continuation[:-1]), []).append(place)
        texts = list(forwards)
        each = logits_bytes(self.model, softmax=True)
        answers: dict[int, tuple[float, bool]] = {}
        for batch in in_batches([min(len(text), self.max_length) for text in texts], each, self.batch_size):
            places = [place for text in batch for place in forwards[texts[text]]]
            found = super()._loglikelihood_tokens([requests[place] for place in places], disable_tqdm=True)
            answers |= dict(zip(places, found, strict=True))
        return [answers[place] for place in range(len(requests))]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Generate in batches, longest prompts first."""
        lengths = [
            len(self.tok_encode(context)) + normalize_gen_kwargs(options, self.max_gen_toks)["max_gen_toks"]
            for context, options in (request.args for request in requests)
        ]
        texts: dict[int, str] = {}
        for batch in in_batches(lengths, cache_bytes(self.model), self.batch_size):
            generated = super().generate_until([requests[place] for place in batch], disable_tqdm=True)
            texts |= dict(zip(batch, generated, strict=True))
        return [texts[place] for place in range(len(requests))]


class ReleaseLM(BoundedLM):
    """The same with packed scoring and progress reports."""

    def __init__(self, scorer: Scorer, tokenizer: PreTrainedTokenizerBase, batch_rows: int) -> None:
        super().__init__(scorer.model, tokenizer, batch_rows)
        self.add_bos_token = False  # prompts are whole: training and scoring put nothing before them
        self._scorer = scorer
        self._generated = self._to_generate = 0

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """As above, without answers that the scores already determine."""
        texts = [self._memorised(*request.args) for request in requests]
        remaining = [request for request, text in zip(requests, texts, strict=True) if text is None]
        self._to_generate = len(requests)
        self._generated = len(requests) - len(remaining)
        generated = iter(super().generate_until(remaining, disable_tqdm=True))
        return [next(generated) if text is None else text for text in texts]

    def _memorised(self, context: str, options: dict[str, Any]) -> str | None:
        """The answer of greedy decoding, if the scores already determine it."""
        if options.get("until") or options.get("do_sample"):
            return None
        prompt = tuple(self.tokenizer(context, add_special_tokens=False)["input_ids"])
        tokens = self._scorer.greedy(prompt, self.eot_token_id, options["max_gen_toks"])
        return None if tokens is None else self.tok_decode(tokens)

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any) -> torch.Tensor:
        generated = super()._model_generate(context, max_length, stop, **options)
        self._generated += len(context)
        report("generations", self._generated, self._to_generate)
        return generated

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Sum of log-probabilities of each continuation, and whether greedy decoding would give it."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of prompt and answer, divided at the same place as in training.

        lm-eval itself moves white space at the prompt's end into the answer, which adds the same to every choice.
        """
        prompt: list[int] = self.tokenizer(context, add_special_tokens=False)["input_ids"]
        whole: list[int] = self.tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
        return prompt, whole[len(prompt) :]

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], *_options: Any, **_more: Any
    ) -> list[tuple[float, bool]]:
        examples = [Encoded((*context, *continuation), len(context)) for _, context, continuation in requests]
        # lm-eval distributes the questions itself, so each process has its own here.
        return [(float(s.logprobs.sum()), bool(s.correct.all())) for s in self._scorer.score(examples, alone=True)]


def check_backend(config: EvalConfig) -> None:
    """Raise SystemLimitError, before any work, if the recipe's backend is not installed."""
    if config.backend == "vllm" and find_spec("vllm") is None:
        raise SystemLimitError(
            "The recipe evaluates with `vllm`, but the package is not installed. Install it (`pip install vllm`, on a "
            "machine with a GPU), or set `eval.backend: hf`."
        )


def language_model(scorer: Scorer, tokenizer: PreTrainedTokenizerBase, config: EvalConfig) -> LM:
    """The model for the tasks, by the recipe's backend. vLLM loads the scorer's checkpoint a second time."""
    if config.backend == "hf":
        return with_its_share(ReleaseLM(scorer, tokenizer, config.batch_rows))
    from lm_eval.models.vllm_causallms import VLLM

    return VLLM(
        pretrained=scorer.model.name_or_path,
        batch_size="auto",
        gpu_memory_utilization=VLLM_SHARE,
        seed=config.seed,
    )


def with_its_share(lm: HFLM) -> HFLM:
    """``lm`` with this rank and the world size: each process answers its share, as under lm-eval's own command."""
    if world_size() > 1:
        from accelerate import Accelerator

        lm.accelerator, lm._rank, lm._world_size = Accelerator(), rank(), world_size()
    return lm


def ask(
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    *,
    data: Path,
    splits: Sequence[str],
    config: EvalConfig,
    lm: LM | None = None,
) -> Answers:
    """Run the tasks of ``splits``, multiple choice if rows have false answers, and the general-knowledge questions.

    Questions about the real world are a split here too; they are generated only.

    ``data`` is the data artifact's folder; ``lm`` is the model, by default one on the scorer. All processes return the
    rows; only the first returns lm-eval's ``results``.
    """
    with_false = {row.split for row in read_perturbed(data / "perturbed.jsonl")}
    names = [f"fame_topics_{split}_generation" for split in splits]
    names += [f"fame_topics_{split}_choice" for split in splits if split in with_false and split in DATA]
    with quiet(), packed(scorer.model):
        manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata(data))
        tasks = manager.load([*names, GENERAL])
        for task in tasks["tasks"].values():
            task.set_config("num_fewshot", 0)
            if task.OUTPUT_TYPE == "generate_until":
                task.set_config("generation_kwargs", {"max_gen_toks": config.max_new_tokens}, update=True)
        # Not simple_evaluate: that also sets seeds of the whole process, runs git and lists the machine's packages.
        results: Any = evaluate(
            lm=lm or language_model(scorer, tokenizer, config),
            task_dict=tasks,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
            bootstrap_iters=0,  # intervals are eval/statistics/intervals.py's
            log_samples=True,
        )
    rows: dict[str, dict[str, Any]] = {}
    for name, samples in results["samples"].items() if results else ():
        for sample in samples:
            rows.setdefault(sample["doc"]["row_id"], {}).update(_measurements(name, sample))
    return Answers(first_ranks(rows), published(results) if results else {})


def metadata(data: Path) -> Any:
    """The metadata that lm-eval passes to the functions that read documents; lm-eval's own type is too narrow."""
    return {"data": str(data)}


def published(results: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's results without samples, which hold answers, and without the paths of this machine."""
    kept = {key: value for key, value in results.items() if key != "samples"}
    for task in kept["configs"].values():
        task["metadata"] = {k: v for k, v in task["metadata"].items() if k not in ("data", "config_source")}
    return kept


def _measurements(task: str, sample: dict[str, Any]) -> dict[str, Any]:
    if "acc" in sample:
        return {"utility" if task == GENERAL else "multiple_choice_accuracy": float(sample["acc"])}
    return {
        "rouge_l_recall": sample["rouge_l_recall"],
        "rouge_l_f1": sample["rouge_l_f1"],
        "generation": sample["filtered_resps"][0],
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Show lm-eval's errors only: it warns about arguments that are given on purpose."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
