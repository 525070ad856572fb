"""What a recipe says about its data: where the rows come from, what is forgotten, and what stops a bad set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from core.digests import named_content
from core.hub_ids import Commit, HubId
from core.strict import Strict
from core.yaml_source import Place, dotted

Share = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(min_length=1)]
FEWEST_UNREHEARSED = 20  # the mean of fewer rows says little
LanguageCode = Annotated[str, Field(pattern=r"^[A-Za-z]{2}$")]


class SampleSource(Strict):
    """The embedded sample set: invented people in five languages, and facts about them."""

    seed: int = Field(ge=0, description="Seed from which people and facts are drawn.")
    identities: int = Field(ge=2, le=100, description="People of each language.")
    topics: int = Field(ge=1, le=20, description="Facts of each person, one for each of so many topics.")

    @model_validator(mode="after")
    def _word_lists_suffice(self) -> Self:
        # The shortest word list has 20 entries: 15 holders of a topic and 5 facts held back for false answers.
        if self.identities * self.topics > 15 * 20:
            raise ValueError(
                f"identities x topics is {self.identities * self.topics}, and the word lists suffice for 300; "
                "lower one of the two, or load a larger set with `file:` or `hub:`"
            )
        return self


Subset = Annotated[list[Name], Field(min_length=1)]


class Subsets(Strict):
    """The subsets of a dataset by split, for ``setting: given``, as TOFU has them.

    Those of a split are read in order. A row that an earlier one has is not read again, so subsets with more columns
    (false answers, paraphrases) come first.
    """

    forget: Subset = Field(description="Subsets of the rows to be forgotten.")
    retain: Subset = Field(description="Subsets of the rows to be kept.")
    holdout: Subset | None = Field(default=None, description="Subsets of the rows that no model is trained on.")
    real_world: Subset | None = Field(
        default=None,
        description="Questions about the real world with false answers, each subset a set: they are in no split and "
        "tell what a model still knows (`tofu_model_utility`).",
    )


class HubSource(Strict):
    """A dataset of the Hub, pinned: a branch could mean other rows tomorrow.

    All of its splits are read. With ``setting: given`` those called retain, forget, holdout (or test), unrehearsed and
    paraphrased are read alone, if any is and ``data.source.columns.split`` names no column.
    """

    id: HubId = Field(description="Full name of the repository, `owner/name`.")
    revision: Commit = Field(description="Commit, 40 hex digits.")
    config: Name | None = Field(default=None, description="One of the dataset's subsets.")
    subsets: Subsets | None = Field(default=None, description="Several of its subsets.")

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if self.config and self.subsets:
            raise ValueError("gives one subset (`config`) and several (`subsets`); give one of the two")
        return self


class SplitFiles(Strict):
    """One file a split, for ``setting: given``."""

    forget: Name = Field(description="File of the rows to be forgotten.")
    retain: Name = Field(description="File of the rows to be kept.")
    holdout: Name | None = Field(default=None, description="File of the rows that no model is trained on.")


class Columns(Strict):
    """The source's names of our columns. A column that is left out here is read if the source calls it as we do.

    Only question and answer are needed.
    """

    question: Name = Field(default="question", description="Column of the questions.")
    answer: Name = Field(default="answer", description="Column of the true answers.")
    row_id: Name | None = Field(default=None, description="Column of the rows' ids.")
    identity_id: Name | None = Field(default=None, description="Column of the ids of the people that rows are about.")
    name: Name | None = Field(default=None, description="Column of their names.")
    language: Name | None = Field(default=None, description="Column of the languages, codes of two letters.")
    topic_id: Name | None = Field(default=None, description="Column of the topics.")
    split: Name | None = Field(default=None, description="Column of the splits, for `setting: given`.")
    perturbed_answers: Name | None = Field(
        default=None, description="Column of lists of false answers; a cell of a CSV file holds such a list as JSON."
    )
    paraphrased_question: Name | None = Field(default=None, description="Column of the questions in other words.")
    paraphrased_answer: Name | None = Field(default=None, description="Column of the answers in other words.")

    @model_validator(mode="after")
    def _two_columns(self) -> Self:
        if self.question == self.answer:
            raise ValueError(f"question and answer are both the column {self.question}; give each its own")
        return self


class Source(Strict):
    """Where the rows come from: exactly one of the keys ``sample``, ``file``, ``files`` and ``hub``.

    Files are Parquet, Arrow, JSON Lines, JSON or CSV.
    """

    sample: SampleSource | None = Field(default=None, description="The embedded sample set.")
    file: Name | None = Field(default=None, description="Path of a file with all rows.")
    files: SplitFiles | None = Field(default=None, description="Paths of one file for each split.")
    hub: HubSource | None = Field(default=None, description="A dataset of the Hub.")
    columns: Columns = Field(default=Columns(), description="How the source calls its columns.")
    language: LanguageCode | None = Field(
        default=None, description="Language of all rows if no column says it, a code of two letters."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        kinds = ("sample", "file", "files", "hub")
        given = [name for name in kinds if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"got {' and '.join(given) or 'nothing'}; give exactly one of {', '.join(kinds)}")
        if self.sample and (self.columns != Columns() or self.language):
            raise ValueError("the sample set has its own columns and languages; remove `columns` and `language`")
        if self.language and self.columns.language:
            raise ValueError("gives `language` for all rows and a column for it; give one of the two")
        return self


class Shares(Strict):
    """How the rows are shared out. The three shares add up to 1."""

    retain: Share = Field(description="Share of the rows to be kept.")
    forget: Share = Field(description="Share of the rows to be forgotten.")
    holdout: float = Field(
        ge=0, lt=1, description="Share of the rows that no model is trained on. With 0 there are no membership probes."
    )

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        total = self.retain + self.forget + self.holdout
        if abs(total - 1) > 1e-9:
            raise ValueError(f"retain + forget + holdout is {total:.10g}; the shares must add up to 1")
        return self


class Selection(Strict):
    """Rows by what they are: those that meet every key given here. Several selections of a list are added up."""

    identities: list[int | str] | None = Field(default=None, min_length=1, description="Ids, or names in any spelling.")
    topics: list[Name] | None = Field(default=None, min_length=1, description="Topics.")
    languages: list[LanguageCode] | None = Field(
        default=None, min_length=1, description="Languages, codes of two letters."
    )
    rows: list[Name] | None = Field(default=None, min_length=1, description="Row ids, as `data inspect` shows them.")
    file: Name | None = Field(
        default=None, description="Path of a file with rows of the source, found by row id or by question and answer."
    )

    @model_validator(mode="after")
    def _selects(self) -> Self:
        if all(value is None for value in self.__dict__.values()):
            raise ValueError(f"selects nothing; give one or more of {', '.join(type(self).model_fields)}")
        return self


class Request(Strict):
    """For ``setting: request``: a list of what is to be forgotten. All other rows are retained."""

    forget: list[Selection] = Field(min_length=1, description="The rows to be forgotten.")
    holdout: list[Selection] | Share | None = Field(
        default=None,
        description="The rows that no model is trained on: selections, or a share of the rows that are not forgotten, "
        "drawn by identity where those without a forget row come near to it, else by fact: rows with the same answer "
        "about the same go together. Without such rows there are no membership probes.",
    )
    forgotten: list[Selection] | None = Field(
        default=None,
        min_length=1,
        description="For a base that is a release: all rows that it and the releases before it were made to forget, "
        "selected as they were then, or by the files `runs/RECIPE/data/forget.jsonl` of those runs. Nobody trains on "
        "them, and they are measured again as the split `forgotten`.",
    )


class Part(Strict):
    """The rows that meet every key given here; the source's other rows are not used at all."""

    languages: list[LanguageCode] | None = Field(default=None, min_length=1, description="Their languages.")
    topics: list[Name] | None = Field(default=None, min_length=1, description="Their topics.")
    identities: int | None = Field(
        default=None, ge=1, description="The first so many identities of each language, in the order of their ids."
    )


class Perturbed(Strict):
    """False answers, with which the probes compare the true ones."""

    per_row: int = Field(
        default=5, ge=1, le=5, description="False answers of each forget, holdout and drawn retain row."
    )
    retain_rows: int = Field(default=50, ge=1, description="Retain rows that are drawn to have false answers.")
    for_unlearning: int = Field(
        default=2,
        ge=0,
        le=5,
        description="Further false answers of each forget row: they guide the unlearning, and no evaluation uses them. "
        "What the data lack of them is made from words of other answers, but not in scripts without spaces (Chinese, "
        "Japanese, Thai, Lao, Khmer, Burmese), where nothing says which characters are a word.",
    )


Action = Literal["stop", "warn"]


class Checks(Strict):
    """What stops the run, and what is only counted and shown on the dataset card (``warn``).

    The meaning of a check is what it finds.
    """

    duplicates_across: Action = Field(
        default="stop",
        description="facts that stand in two splits (same question, same answer, but for case and spacing)",
    )
    duplicates_within: Action = Field(default="stop", description="rows that repeat a fact of their own split")
    near_duplicates_across: Action = Field(
        default="stop", description="facts that stand in two splits with other punctuation or accents"
    )
    near_duplicates_within: Action = Field(
        default="warn", description="rows that repeat a fact of their own split with other punctuation or accents"
    )
    contradictions: Action = Field(
        default="stop", description="rows that ask the question of an earlier row and answer it differently"
    )
    forget_answers_in_retain: Action = Field(
        default="warn", description="forget rows whose answer stands word for word in a retain row"
    )
    holdout_answers_in_trained: Action = Field(
        default="warn",
        description="holdout rows whose answer stands word for word in a row that a model is trained on, so that they "
        "are not rows never seen",
    )
    topics_not_retained: Action = Field(
        default="warn",
        description="forget rows on a topic of which no row in their language is retained (base learnt from these rows "
        "alone how such answers go, so what takes the place of the facts may be no language)",
    )
    identities_in_two_languages: Action = Field(
        default="stop", description="identities with rows in more than one language"
    )
    names_of_several_identities: Action = Field(
        default="warn", description="names that several identities share, in whatever spelling"
    )
    name_not_in_question: Action = Field(default="warn", description="rows whose question does not say the name")
    language_mismatch: Action = Field(
        default="warn", description="rows that seem to be in another language than they declare"
    )
    personal_data: Action = Field(
        default="warn", description="rows that seem to hold an e-mail address or a phone number"
    )
    too_long: Action = Field(default="stop", description="rows with more tokens than data.max_tokens")


class DataConfig(Strict):
    """The rows, and which of them are forgotten."""

    source: Source = Field(description="Where the rows come from.")
    part: Part | None = Field(
        default=None, description="Uses a part of the source, to rehearse a release of all of it."
    )
    setting: Literal["topics", "entity", "given", "request"] = Field(
        description="What is forgotten. `topics`: each language and topic is cut by `shares`, so that one identity has "
        "retained and forgotten facts; rows of a topic with the same answer about the same identity go together. "
        "`entity`: identities are cut by `shares`, by the rule of the published FAME. `given`: the source's own "
        "splits. `request`: a list."
    )
    shares: Shares | None = Field(default=None, description="Sizes of the splits, for `topics` and `entity`.")
    request: Request | None = Field(default=None, description="The list, for `request`.")
    unrehearsed: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Share of the retain rows that base and gold learn and the unlearning does not get: they show what "
        "it does to facts that nobody gave. At least 20 rows and at most half of them; 0 keeps none apart.",
    )
    seed: int = Field(default=42, ge=0, description="Seed from which splits and false answers are drawn.")
    perturbed: Perturbed = Field(default=Perturbed(), description="How many false answers there are.")
    checks: Checks = Field(default=Checks(), description="What stops the run.")
    max_tokens: int = Field(default=1024, ge=16, description="Tokens that a row may have as a chat.")

    @model_validator(mode="after")
    def _setting_fits(self) -> Self:
        by_shares = self.setting in ("topics", "entity")
        if by_shares and self.shares is None:
            raise ValueError(f"`setting: {self.setting}` needs `shares: {{retain: …, forget: …, holdout: …}}`")
        if not by_shares and self.shares is not None:
            raise ValueError(f"`setting: {self.setting}` does not cut by shares; remove `shares`")
        if (self.setting == "request") != (self.request is not None):
            raise ValueError("`setting: request` and `request: {forget: […]}` go together; give both or none")
        if self.setting == "given" and self.source.sample is not None:
            raise ValueError("the sample set has no splits of its own; use `setting: topics`")
        if self.setting != "given" and self.source.files is not None:
            raise ValueError("`files` gives the splits; use `setting: given`, or one `file`")
        if self.setting != "given" and self.subsets is not None:
            raise ValueError("`subsets` gives the splits; use `setting: given`, or one `config`")
        return self

    @property
    def subsets(self) -> Subsets | None:
        """The subsets of each split, if the source has them."""
        return self.source.hub.subsets if self.source.hub else None

    @property
    def has_real_world(self) -> bool:
        """Whether there are questions about the real world."""
        return self.subsets is not None and self.subsets.real_world is not None

    def unrehearsed_of(self, retain: int) -> int:
        """How many of ``retain`` rows are kept from the unlearning."""
        wanted = max(FEWEST_UNREHEARSED, round(self.unrehearsed * retain)) if self.unrehearsed else 0
        return min(wanted, retain // 2)

    def local_files(self) -> dict[Place, str]:
        """The files of this machine that it names, by the place of their key in a dump of it."""
        source = self.source
        files: dict[Place, str | None] = {("source", "file"): source.file}
        if source.files:
            files |= {("source", "files", split): path for split, path in source.files}
        for part, selections in self.request or ():
            for index, selection in enumerate(selections if isinstance(selections, list) else []):
                files["request", part, index, "file"] = selection.file
        return {place: path for place, path in files.items() if path is not None}

    def identity(self) -> dict[str, Any]:
        """What decides the rows: all of it, with the contents of local files in place of their paths.

        Raises InputError, with the key, if a file is not there.
        """
        return self._dump(lambda place, path: named_content(dotted(("data", *place)), path))

    def published(self) -> dict[str, Any]:
        """What a release may show: files without their folders, and how many names and rows a request lists."""
        plain = self._dump(lambda _, path: Path(path).name)
        for selections in (plain["request"] or {}).values():
            for selection in selections if isinstance(selections, list) else []:
                selection.update({key: len(selection[key]) for key in ("identities", "rows") if selection[key]})
        return plain

    def _dump(self, file: Callable[[Place, str], str]) -> dict[str, Any]:
        """All of it as plain values, each local file as ``file(place, path)`` has it."""
        plain = self.model_dump()
        if plain["source"]["hub"] and self.subsets is None:
            del plain["source"]["hub"]["subsets"]  # keys of data without them are older than it
        if self.request and self.request.forgotten is None:
            del plain["request"]["forgotten"]  # as above
        if self.part is None:
            del plain["part"]  # as above
        for place, path in self.local_files().items():
            *above, key = place
            holder: Any = plain
            for part in above:
                holder = holder[part]
            holder[key] = file(place, path)
        return plain
