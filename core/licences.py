"""The licences of start models: one entry each, with the terms that it sets for a derived model. Not legal advice.

A licence without an entry is ``other``, and the recipe states its terms (``model.terms``). What a release holds for
them is written in `pipeline/publish/licence.py`. The clauses that the entries come from are quoted in
`tests/test_licences.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from core.strict import Strict

LicenceId = Literal[
    "apache-2.0",
    "mit",
    "bsd-2-clause",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "bigcode-openrail-m",
    "bigscience-openrail-m",
    "creativeml-openrail-m",
    "gemma",
    "llama3",
    "llama3.1",
    "llama3.2",
    "llama3.3",
    "llama4",
    "qwen",
    "qwen-research",
    "other",
]


_WORDS = r"^[\w .,:;'©()/&+-]*$"  # they stand on a card, which is Markdown
_ADDRESS = r"^(https://[\w.~/%#?=&-]+)?$"


class Licence(Strict):
    """The terms of a licence for a derived model. An empty term asks for nothing."""

    name: str = Field(min_length=1, pattern=_WORDS, description="Name of the licence, for people.")
    url: str = Field(min_length=1, pattern=_ADDRESS, description="Address of its text.")
    license_name: str = Field(
        default="", pattern=r"^[a-z0-9.-]*$", description="Its `license_name` on the Hub, if the Hub has no id for it."
    )
    marker: str = Field(default="", description="Words that its text holds; case and line ends do not matter.")
    by_address: bool = Field(default=False, description="Whether its address may stand in place of its text.")
    name_prefix: str = Field(default="", pattern=_WORDS, description="What the name of a derived model begins with.")
    displayed: str = Field(default="", pattern=_WORDS, description="What the card of a derived model says.")
    attribution: str = Field(default="", pattern=_WORDS, description="The sentence that `NOTICE` holds.")
    use_policy: str = Field(default="", pattern=_ADDRESS, description="Address of the rules for the use of the model.")
    gated: bool = Field(default=False, description="Whether its publisher asks readers to accept it first.")

    def name_problem(self, repo: str) -> str | None:
        """Why ``repo`` (owner/name) may not be the name of a model under this licence, or None."""
        name = repo.split("/")[-1]
        if name.startswith(self.name_prefix):
            return None
        return (
            f"the name {name!r} must begin with {self.name_prefix!r}, as the {self.name} asks, for example "
            f"{self.name_prefix}-{name}"
        )


class Licensed(Strict):
    """What names a licence: the id of an entry, or ``other`` and the terms."""

    license: LicenceId = Field(
        description="Licence of the start model, which the release keeps. One that is not listed is `other`, with "
        "`terms`."
    )
    terms: Licence | None = Field(default=None, description="What a licence `other` asks of a derived model.")

    @model_validator(mode="after")
    def _has_terms(self) -> Licensed:
        if (self.license == "other") != (self.terms is not None):
            raise ValueError(
                "license: `other` needs `terms`, which say what the licence asks for, and a licence that is known here "
                "has its own; give both or neither"
            )
        if self.terms and not self.terms.license_name:
            raise ValueError("terms.license_name is missing; the Hub asks for it with the licence `other`")
        return self

    @property
    def rules(self) -> Licence:
        """The terms of the licence."""
        return self.terms or LICENCES[self.license]

    @property
    def metadata(self) -> dict[str, str]:
        """The licence in the metadata of a card, as the Hub names it."""
        if name := self.rules.license_name:
            return {"license": "other", "license_name": name, "license_link": self.rules.url}
        return {"license": self.license, "license_link": self.rules.url}


def _llama(version: str, folder: str, license_name: str = "") -> Licence:
    """A Llama Community License from 3.1 on; section 1.b, alike in all of them."""
    return Licence(
        name=f"Llama {version} Community License",
        url=f"https://www.llama.com/{folder}/license/",
        marker=f"LLAMA {version} COMMUNITY LICENSE AGREEMENT",
        name_prefix="Llama",
        displayed="Built with Llama",
        attribution=f"Llama {version} is licensed under the Llama {version} Community License, Copyright © Meta "
        "Platforms, Inc. All Rights Reserved.",
        use_policy=f"https://www.llama.com/{folder}/use-policy",
        gated=True,
        license_name=license_name,
    )


def _qwen(name: str, license_name: str, model: str) -> Licence:
    """A Qwen agreement of 19 September 2024; sections 3 and 4.b. Most Qwen models are under apache-2.0."""
    notice = f"Qwen is licensed under the {name}, Copyright (c) Alibaba Cloud. All Rights Reserved."
    return Licence(
        name=name,
        license_name=license_name,
        url=f"https://huggingface.co/Qwen/{model}/blob/main/LICENSE",
        marker=notice.removesuffix(" All Rights Reserved."),  # a later version names another owner, so is another one
        displayed="Built with Qwen",
        attribution=notice,
    )


def _creative_commons(kind: str) -> Licence:
    """A Creative Commons 4.0 licence; section 3.a.1: name the authors and the licence, say that it was changed."""
    return Licence(
        name=f"CC {kind.upper()} 4.0",
        url=f"https://creativecommons.org/licenses/{kind}/4.0/legalcode",
        marker=f"https://creativecommons.org/licenses/{kind}/4.0/",
        by_address=True,
    )


def _openrail(owner: str, url: str) -> Licence:
    """A licence with the use restrictions of an Attachment A; section III.4: hand on the licence and the restrictions.

    Texts write Open RAIL-M and OpenRAIL-M.
    """
    return Licence(name=f"{owner} Open RAIL-M", url=url, marker="RAIL-M", use_policy=url)


LICENCES: Mapping[str, Licence] = {
    # Section 4: a copy of the licence, a notice of changes, and the NOTICE of the original.
    "apache-2.0": Licence(
        name="Apache License 2.0", url="https://www.apache.org/licenses/LICENSE-2.0", marker="Apache License"
    ),
    # Their texts hold the owner's copyright notice, which copies must keep: the start model's own is handed on.
    "mit": Licence(
        name="MIT License", url="https://opensource.org/license/mit", marker="Permission is hereby granted, free of"
    ),
    "bsd-2-clause": Licence(
        name="BSD 2-Clause License",
        url="https://opensource.org/license/bsd-2-clause",
        marker="Redistribution and use in source and binary forms",
    ),
    "bsd-3-clause": Licence(
        name="BSD 3-Clause License", url="https://opensource.org/license/bsd-3-clause", marker="Neither the name of"
    ),
    "cc-by-4.0": _creative_commons("by"),
    "cc-by-sa-4.0": _creative_commons("by-sa"),
    "cc-by-nc-4.0": _creative_commons("by-nc"),
    "cc-by-nc-sa-4.0": _creative_commons("by-nc-sa"),
    "bigcode-openrail-m": _openrail("BigCode", "https://huggingface.co/spaces/bigcode/bigcode-model-license-agreement"),
    "bigscience-openrail-m": _openrail("BigScience", "https://bigscience.huggingface.co/blog/bigscience-openrail-m"),
    "creativeml-openrail-m": _openrail("CreativeML", "https://huggingface.co/spaces/CompVis/stable-diffusion-license"),
    # Section 3.1. Gemma 4 is under apache-2.0.
    "gemma": Licence(
        name="Gemma Terms of Use",
        url="https://ai.google.dev/gemma/terms",
        marker="Gemma Terms of Use",
        attribution="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
        use_policy="https://ai.google.dev/gemma/prohibited_use_policy",
        gated=True,
    ),
    "llama3": Licence(
        name="Meta Llama 3 Community License",
        url="https://www.llama.com/llama3/license/",
        marker="META LLAMA 3 COMMUNITY LICENSE AGREEMENT",
        name_prefix="Llama-3",
        displayed="Built with Meta Llama 3",
        attribution="Meta Llama 3 is licensed under the Meta Llama 3 Community License, Copyright © Meta Platforms, "
        "Inc. All Rights Reserved.",
        use_policy="https://www.llama.com/llama3/use-policy",
        gated=True,
    ),
    "llama3.1": _llama("3.1", "llama3_1"),
    "llama3.2": _llama("3.2", "llama3_2"),
    "llama3.3": _llama("3.3", "llama3_3"),
    "llama4": _llama("4", "llama4", license_name="llama4"),
    "qwen": _qwen("Qwen LICENSE AGREEMENT", "qwen", "Qwen2.5-72B-Instruct"),
    "qwen-research": _qwen("Qwen RESEARCH LICENSE AGREEMENT", "qwen-research", "Qwen2.5-3B-Instruct"),
}
