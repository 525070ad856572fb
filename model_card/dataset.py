"""The data set that a card describes: the sample set, a data set on the Hub, or the publisher's own files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from datasets_prep.schema import FAME
from model_card.config import NONE_STATED, CardDataset, CardInputs

_ARXIV = re.compile(r"\b\d{4}\.\d{4,5}\b")
FAME_PAPER = "2512.15235"  # on arXiv
FAME_CITATION = """\
@misc{fame,
  title = {FAME: Fictional Actors for Multilingual Erasure},
  author = {Savelli and La Quatra and Koudounas and Giobergia},
  year = {2025},
  eprint = {2512.15235},
  archivePrefix = {arXiv}
}"""
SAMPLE = CardDataset(name="FAME-format sample set", citation=FAME_CITATION)
UNNAMED = "A data set of the publisher's own"


@dataclass(frozen=True)
class Dataset:
    """What a card says about the data.

    ``hub`` and ``revision`` are set for a data set on the Hub; ``subset`` is the one that was read, or ``subsets`` are
    those of each split.
    ``license`` is a sentence, empty if no licence is known; ``citation`` is BibTeX or None.
    """

    name: str
    hub: str | None
    revision: str | None
    subset: str | None
    subsets: dict[str, list[str]]
    sample: bool
    files: bool
    license: str
    citation: str | None

    def subset_of(self, split: str) -> str | None:
        """The subset that a split's rows come from, None if it is not exactly one."""
        names = self.subsets.get("retain" if split == "unrehearsed" else split, [])
        return names[0] if len(names) == 1 else self.subset

    @property
    def paper(self) -> str | None:
        """The address of the paper that the citation is of, if it is on arXiv; the Hub lists papers by such links."""
        found = _ARXIV.search(self.citation or "")
        return f"https://arxiv.org/abs/{found[0]}" if found else None

    @property
    def is_fame(self) -> bool:
        """Whether the rows are FAME's, or the citation is of FAME, as for the sample set in its format."""
        return self.hub == FAME or FAME_PAPER in (self.citation or "")


def dataset_of(inputs: CardInputs) -> Dataset:
    """The data set of a recipe: its source, with name, licence and citation from the recipe's card section."""
    source: dict[str, Any] = inputs.data["source"]  # type: ignore[assignment]
    hub = source.get("hub") or {}
    sample = source.get("sample") is not None
    described = SAMPLE if sample else inputs.card.dataset or CardDataset()
    return Dataset(
        name=described.name or hub.get("id") or UNNAMED,
        hub=hub.get("id"),
        revision=hub.get("revision"),
        subset=hub.get("config"),
        subsets={split: names for split, names in (hub.get("subsets") or {}).items() if names},
        sample=sample,
        files=source.get("files") is not None,
        license=_license(described.license, on_hub=bool(hub)),
        citation=described.citation.strip() if described.citation else None,
    )


def _license(name: str | None, *, on_hub: bool) -> str:
    if name == NONE_STATED:
        return "Its card states no licence." if on_hub else "No licence is stated for it."
    if name:
        return f"Its licence: {name}."
    return "Its licence is what its authors state there." if on_hub else ""
