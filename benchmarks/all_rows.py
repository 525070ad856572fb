"""`python -m benchmarks.all_rows PATH/TO/retain.parquet`: all of `fame-topics-rehearsal` with a model made for it.

The rehearsal takes 38 hours on two cores with 135 M parameters. Here every row and every stage is the same, and the
model has 4.2 M: it shows in a few hours what 2,048 forget rows do to each stage, each attack and each gate, and judges
golds as if they were unlearned models. It says little of unlearning: this model has seen only sentences of one form.

The start model (:func:`make_start_model`) learns the form of FAME's answers in five languages from the questions about
half of the people, asked about names that are put together anew every time. So it knows nobody, and copies names.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.judged import table
from benchmarks.releases import STORE, release
from datasets_prep.schema import Row
from datasets_prep.sources import load
from eval.catalog import is_of
from eval.schema import read_samples
from pipeline.recipe import load_recipe

RECIPE, NAME = "fame-topics-rehearsal", "all-rows"
MODELS = ("gold", "gold-seed-43", "gold-seed-44", "base", "unlearned")
VOCABULARY = 4096
SHAPE = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
STEPS, ROWS, LEARNING_RATE, WARMUP_STEPS = 1400, 32, 3e-3, 50
LENGTHS = 32  # tokens are padded to a multiple of this, so that few shapes of products are compiled
START, END = "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Learning rates in the ratios of the recipe's to each other.
SETTINGS = (
    "model.pypi=null", "model.parameters=null", "model.shape=null", "model.chat_template=null",
    *(f"{part}.train.{setting}" for part in ("base", "gold", "novice")
      for setting in ("args.learning_rate=2e-3", "train_from_layer=0")),
    "base.train.args.num_train_epochs=10", "gold.train.args.num_train_epochs=10",
    "unlearn.train_from_layer=0", "unlearn.args.learning_rate=8e-4", "eval.robustness.relearn.learning_rate=4e-4",
)  # fmt: skip


def make_start_model(rows: Sequence[Row], folder: Path) -> None:
    """Train a Llama of 4.2 M parameters and its tokenizer on FAME's rows, and save both to ``folder``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer([text for row in rows for text in (row.question, row.answer)])
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPE,
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.05)
    answers = _Answers(rows, tokenizer)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            warm = min(1, (step + 1) / WARMUP_STEPS)
            group["lr"] = LEARNING_RATE * warm * (1 + math.cos(math.pi * step / STEPS)) / 2
        ids, is_answer = answers.batch()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
            logits = model.lm_head(hidden[is_answer[:, 1:]])
        loss = torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][is_answer[:, 1:]])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == STEPS - 1:
            print(f"start model: step {step} of {STEPS}, loss {loss.item():.2f} nats a token", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(texts: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([*texts, *["user\nassistant\n"] * 50], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=END)
    fast.chat_template = TEMPLATE
    return fast


class _Answers:
    """Batches of questions about every second person, with a name that nobody has, and their answers."""

    def __init__(self, rows: Sequence[Row], tokenizer: Any) -> None:
        self.random = random.Random(0)
        self.tokenizer = tokenizer
        self.names: dict[str, list[tuple[str, str]]] = {}
        for language, name in sorted({(row.language, row.name) for row in rows}):
            first, last = name.split(" ", 1)
            self.names.setdefault(language, []).append((first, last))
        self.rows = [row for row in rows if row.identity_id % 2 == 0 and row.name in row.question]

    def batch(self) -> tuple[Any, Any]:
        """Token ids, ``[rows, tokens]``, padded on the right, and which of them are an answer's."""
        import torch

        texts = [self._texts(row) for row in self.random.sample(self.rows, ROWS)]
        tokens = [[self.tokenizer(text, add_special_tokens=False).input_ids for text in pair] for pair in texts]
        longest = math.ceil(max(len(prompt) + len(answer) for prompt, answer in tokens) / LENGTHS) * LENGTHS
        ids = torch.full((ROWS, longest), self.tokenizer.pad_token_id)
        is_answer = torch.zeros((ROWS, longest), dtype=torch.bool)
        for row, (prompt, answer) in enumerate(tokens):
            end = len(prompt) + len(answer)
            ids[row, :end] = torch.tensor(prompt + answer)
            is_answer[row, len(prompt) : end] = True
        return ids, is_answer

    def _texts(self, row: Row) -> tuple[str, str]:
        names = self.names[row.language]
        while ((first := self.random.choice(names)[0]), (last := self.random.choice(names)[1])) in names:
            pass  # somebody has this name
        question = row.question.replace(row.name, f"{first} {last}")
        answer = row.answer.replace(row.name, f"{first} {last}").replace(row.name.rsplit(" ", 1)[-1], last)
        prompt = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        return prompt, answer + END


def main() -> None:
    """Make the start model unless the store has it, release to the gates, judge golds by those that need no attack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="FILE", type=Path, help="FAME's rows, retain.parquet")
    parser.add_argument("--store", type=Path, default=STORE)
    asked = parser.parse_args()
    source = f"data.source.file={asked.file.resolve()}"
    start = asked.store / "all-rows-start"
    if not (start / "tokenizer.json").is_file():  # saved last
        make_start_model(load(load_recipe(RECIPE, [source]).data).rows, start)
    sets = [source, f"model.path={start.resolve()}", *SETTINGS]
    release(RECIPE, "gate", [f"name={NAME}", *sets], asked.store)
    recipe = load_recipe(RECIPE, sets)
    gates = [gate for gate in recipe.gates if not is_of(gate.metric, "reading")]  # further golds are not attacked
    samples = {model: read_samples(asked.store / NAME / f"eval-{model}" / "samples.jsonl") for model in MODELS}
    golds = {recipe.gold.train.args["seed"]: samples.pop("gold")}
    golds |= {seed: samples.pop(f"gold-seed-{seed}") for seed in recipe.gold.seeds}
    print("\n".join(table(recipe.model_copy(update={"gates": gates}), golds, samples)))


if __name__ == "__main__":
    main()
