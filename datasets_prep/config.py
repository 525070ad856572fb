"""What a recipe says about its data: where the rows come from, what is forgotten, and what stops a bad set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from core.digests import named_content
from core.strict import Strict
from core.yaml_source import Place, dotted

Share = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(min_length=1)]
LanguageCode = Annotated[str, Field(pattern=r"^[A-Za-z]{2}$")]


class SampleSource(Strict):
    """The embedded sample set: ``identities`` invented people a language, each with ``topics`` of the 20 topics."""

    seed: int = Field(ge=0)
    identities: int = Field(ge=2, le=100)
    topics: int = Field(ge=1, le=20)

    @model_validator(mode="after")
    def _word_lists_suffice(self) -> Self:
        # The shortest word list has 20 entries: 15 holders of a topic and 5 facts held back for false answers.
        if self.identities * self.topics > 15 * 20:
            raise ValueError(
                f"identities x topics is {self.identities * self.topics}, and the word lists suffice for 300; "
                "lower one of the two, or load a larger set with `file:` or `hub:`"
            )
        return self


class HubSource(Strict):
    """A dataset of the Hub, pinned: a branch could mean other rows tomorrow. ``config`` names one of its subsets."""

    id: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    config: Name | None = None


class SplitFiles(Strict):
    """One file a split, for ``setting: given``."""

    forget: Name
    retain: Name
    holdout: Name | None = None


class Columns(Strict):
    """Ours to theirs: the source's name of each column. What is left out is taken where the source calls it as we do.

    Only question and answer are needed. ``perturbed_answers`` holds lists of false answers; ``paraphrased_question``
    and ``paraphrased_answer`` the same fact in other words.
    """

    question: Name = "question"
    answer: Name = "answer"
    row_id: Name | None = None
    identity_id: Name | None = None
    name: Name | None = None
    language: Name | None = None
    topic_id: Name | None = None
    split: Name | None = None
    perturbed_answers: Name | None = None
    paraphrased_question: Name | None = None
    paraphrased_answer: Name | None = None


class Source(Strict):
    """Where the rows come from: exactly one of the keys ``sample``, ``file``, ``files`` and ``hub``.

    Files are Parquet, Arrow, JSON Lines, JSON or CSV. ``language`` is that of all rows, where no column says it.
    """

    sample: SampleSource | None = None
    file: Name | None = None
    files: SplitFiles | None = None
    hub: HubSource | None = None
    columns: Columns = Columns()
    language: LanguageCode | None = None

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
    """The shares of the rows, together 1. Without holdout rows the membership probes are left out."""

    retain: Share
    forget: Share
    holdout: float = Field(ge=0, lt=1)

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        total = self.retain + self.forget + self.holdout
        if abs(total - 1) > 1e-9:
            raise ValueError(f"retain + forget + holdout is {total:.10g}; the shares must add up to 1")
        return self


class Selection(Strict):
    """Rows by what they are: those that meet every key given here. Several selections of a list are added up.

    ``identities`` are ids or names, ``rows`` row ids, ``file`` holds rows of the source, found by row id or by
    question and answer.
    """

    identities: list[int | str] | None = Field(default=None, min_length=1)
    topics: list[Name] | None = Field(default=None, min_length=1)
    languages: list[LanguageCode] | None = Field(default=None, min_length=1)
    rows: list[Name] | None = Field(default=None, min_length=1)
    file: Name | None = None

    @model_validator(mode="after")
    def _selects(self) -> Self:
        if all(value is None for value in self.__dict__.values()):
            raise ValueError(f"selects nothing; give one or more of {', '.join(type(self).model_fields)}")
        return self


class Request(Strict):
    """``setting: request``: what is to be forgotten; all other rows are retained.

    ``holdout`` are rows that no model is trained on: selections too, or a share of the rows that are not forgotten,
    drawn by identity where there are identities. Without them the membership probes are left out.
    """

    forget: list[Selection] = Field(min_length=1)
    holdout: list[Selection] | Share | None = None


class Perturbed(Strict):
    """False answers: ``per_row`` for each forget and holdout row, and for ``retain_rows`` rows drawn from retain.

    ``for_unlearning`` more for each forget row guide the unlearning, and no evaluation uses them.
    """

    per_row: int = Field(default=5, ge=1, le=5)
    retain_rows: int = Field(default=50, ge=1)
    for_unlearning: int = Field(default=2, ge=0, le=5)


Action = Literal["stop", "warn"]


class Checks(Strict):
    """What stops the run, and what is only counted and shown on the dataset card: ``checks.py`` says what is found."""

    duplicates_across: Action = "stop"
    duplicates_within: Action = "stop"
    near_duplicates_across: Action = "stop"
    near_duplicates_within: Action = "warn"
    contradictions: Action = "stop"
    forget_answers_in_retain: Action = "warn"
    identities_in_two_languages: Action = "stop"
    names_of_several_identities: Action = "warn"
    name_not_in_question: Action = "warn"
    language_mismatch: Action = "warn"
    personal_data: Action = "warn"
    too_long: Action = "stop"


class DataConfig(Strict):
    """The ``data`` part of a recipe.

    ``setting`` says what is forgotten: ``topics`` (each language and topic is cut by ``shares``, so that one identity
    has retained and forgotten facts), ``entity`` (identities are cut by ``shares``, by the rule of the published FAME),
    ``given`` (the source's own splits) or ``request`` (a list). ``max_tokens`` bounds a chat row.
    """

    source: Source
    setting: Literal["topics", "entity", "given", "request"]
    shares: Shares | None = None
    request: Request | None = None
    seed: int = Field(default=42, ge=0)
    perturbed: Perturbed = Perturbed()
    checks: Checks = Checks()
    max_tokens: int = Field(default=1024, ge=16)

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
        return self

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
        for place, path in self.local_files().items():
            *above, key = place
            holder: Any = plain
            for part in above:
                holder = holder[part]
            holder[key] = file(place, path)
        return plain
