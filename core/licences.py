"""The supported licences of start models: their ids on the Hub, and the facts that several folders need.

Their texts, and the files that a release needs for them, are in `pipeline/publish/licence.py`. Not legal advice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

LicenceId = Literal["apache-2.0", "llama3.2"]


@dataclass(frozen=True)
class Licence:
    """A licence's name, the address of its text, and its terms for a derived model; an empty term asks for nothing.

    ``name_prefix``: the model's name begins with it. ``displayed``: the card says it. ``attribution``: the sentence
    that accompanies the model. ``use_policy``: the address of the rules for its use.
    """

    name: str
    url: str
    name_prefix: str = ""
    displayed: str = ""
    attribution: str = ""
    use_policy: str = ""


LICENCES: Mapping[str, Licence] = {
    "apache-2.0": Licence("Apache License 2.0", "https://www.apache.org/licenses/LICENSE-2.0"),
    "llama3.2": Licence(  # section 1.b
        name="Llama 3.2 Community License",
        url="https://www.llama.com/llama3_2/license/",
        name_prefix="Llama",
        displayed="Built with Llama",
        attribution="Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright © Meta Platforms, Inc. "
        "All Rights Reserved.",
        use_policy="https://www.llama.com/llama3_2/use-policy",
    ),
}


def name_problem(licence: str, repo: str) -> str | None:
    """Why ``repo`` (owner/name) may not be the name of a model under this supported licence, or None."""
    name, rules = repo.split("/")[-1], LICENCES[licence]
    if name.startswith(rules.name_prefix):
        return None
    return (
        f"the name {name!r} must begin with {rules.name_prefix!r}, as the {rules.name} asks, for example "
        f"{rules.name_prefix}-{name}"
    )
