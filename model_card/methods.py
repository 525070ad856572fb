"""Name and description of each unlearning method on a card. A variant never has the textbook name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from core.markdown import listed


class Method(NamedTuple):
    """``tag`` is for the Hub's search. ``does`` describes the method; it names parameters and has no numbers.

    ``paper`` is the arXiv id of what it follows, None for a method of this project.
    """

    name: str
    tag: str
    does: str
    paper: str | None = None


_HELD = "while the retain answers are trained on"
METHODS = {
    "ft": Method(
        "Fine-tuning on retain rows alone",
        "retain-finetuning",
        "The model is trained further on retain rows; nothing is done to the forget rows.",
    ),
    "ga": Method(
        "Gradient Ascent",
        "gradient-ascent",
        "The loss of the forget answers is pushed up; nothing is done for the retain rows.",
        "2401.06121",
    ),
    "gd": Method(
        "Gradient Difference",
        "gradient-difference",
        f"The loss of the forget answers is pushed up {_HELD}.",
        "2401.06121",
    ),
    "klm": Method(
        "KL Minimization",
        "kl-minimization",
        "The loss of the forget answers is pushed up while the next-token distributions at the retain answers are held "
        "to those of base (KL divergence).",
        "2401.06121",
    ),
    "po": Method(
        "Preference Optimization with refusals",
        "preference-optimization",
        "Forget questions are trained with a refusal in their language instead of the answer (drawn with "
        "`refusal_seed`). Retain rows are trained with their answers.",
        "2401.06121",
    ),
    "npo": Method(
        "Negative Preference Optimization",
        "npo",
        "The probability of each forget answer is pushed below its probability under base, with a force that fades as "
        "it falls (`beta`), while the retain answers are trained on.",
        "2404.05868",
    ),
    "simnpo": Method(
        "Simple Negative Preference Optimization",
        "simnpo",
        "The mean log-probability of each forget answer is pushed down, without a reference model and with a force "
        "that fades as it falls (`beta`, `gamma`), while the retain answers are trained on.",
        "2410.07163",
    ),
    "altpo": Method(
        "Alternate Preference Optimization",
        "altpo",
        "For each forget question, a false answer is made likelier than the true one, both relative to base, with a "
        f"force that fades as the preference grows (`beta`), {_HELD}. The false answers come with the data, and one is "
        "drawn anew in each epoch; in the published method the model samples them.",
        "2409.13474",
    ),
    "wga": Method(
        "Weighted Gradient Ascent with a retain term",
        "weighted-gradient-ascent",
        "The loss of the forget answers is pushed up, each token weighted with its own probability to the power of "
        f"`beta`, {_HELD}.",
        "2502.19301",
    ),
    "csd": Method(
        "Counterfactual self-distillation",
        "counterfactual-self-distillation",
        "The next-token distributions at the forget answers are brought to what base would say without the fact. "
        "Each token of a fact gets the log-probability that a novice gives it, a model that is to know none of these "
        "facts, mapped so that what the novice says of false answers becomes what base says of them. So does the first "
        "token after a fact, by a map of its own. The rest is what the novice says there, rescaled; where a fact "
        "begins, it is what base says there about other people, if the data name any, and the likeliest of it is "
        "brought to its log-probability too. The other tokens, which all false answers share, get the distributions "
        "that base has in these, or those of the novice where one surprises it, with a level between base and the "
        "novice. At the retain answers the distributions are held to those of base (KL divergence).",
    ),
}


def cap_name(unlearn: Mapping[str, Any]) -> str | None:
    """The named level of the forget cap; None if the cap is a number or there is none."""
    cap = unlearn.get("forget_cap")
    return cap.get("of") if isinstance(cap, Mapping) else cap if isinstance(cap, str) else None


def cap_plus(unlearn: Mapping[str, Any]) -> float:
    """What is added to the named level of the forget cap, in nats per answer token."""
    cap = unlearn.get("forget_cap")
    return float(cap.get("plus") or 0) if isinstance(cap, Mapping) else 0.0


def _at(unlearn: Mapping[str, Any]) -> str:
    plus = cap_plus(unlearn)
    return " above" if plus > 0 else " below" if plus < 0 else " at"


def method_name(unlearn: Mapping[str, Any]) -> str:
    """The name of the method in a recipe's ``unlearn`` section, with everything that makes it a variant."""
    method = str(unlearn.get("method"))
    name = METHODS[method].name if method in METHODS else method
    variants = []
    if unlearn.get("retain_loss") == "kl":
        variants.append("a KL retain term")
    if unlearn.get("forget_cap") is not None:
        variants.append(
            "a per-row forget cap"
            + (f" {_at(unlearn)} the loss of false answers" if cap_name(unlearn) == "false_answers" else "")
        )
    if unlearn.get("dual"):
        variants.append("a primal-dual retain weight")
    if unlearn.get("neighbours"):
        variants.append("rehearsed neighbours")
    if unlearn.get("lora"):
        variants.append("LoRA adapters that were merged")
    if not variants:
        return name
    return f"{name}{', also' if ' with ' in name else ''} with {listed(variants)}"


def method_does(unlearn: Mapping[str, Any]) -> list[str]:
    """What the method does, as Markdown sentences."""
    method = str(unlearn.get("method"))
    sentences = [METHODS[method].does] if method in METHODS else []
    if method in METHODS and (paper := METHODS[method].paper):
        address = f"https://arxiv.org/abs/{paper}"
        sentences.append(f"It follows [{address}]({address}).")
    if method == "csd" and unlearn.get("pull_weight") != 0:
        sentences.append(
            "Tokens with levels are pulled to them, and further the longer they stay above them on average. In each "
            "step a false answer to each forget question is held to the log-probability that base gives it."
        )
    if unlearn.get("retain_loss") == "kl":
        sentences.append("On the retain answers, the KL divergence from base is minimised instead of the loss.")
    if unlearn.get("neighbours"):
        sentences.append("It also rehearses base's own answers to the given questions about other people.")
    if unlearn.get("loss_normalization") == "microbatch_mean":
        sentences.append(
            "Losses are means over each micro-batch, as in published code, so they depend on how a step is split."
        )
    if unlearn.get("lora"):
        sentences.append(
            "Only low-rank adapters were trained. They are merged into the weights, and the merge was checked."
        )
        if unlearn["lora"].get("frozen") == "nf4":
            sentences.append("The weights below them were rounded to 4 bits (nf4), and so are those that are released.")
    if unlearn.get("retain_weight") == 0 and not unlearn.get("dual"):
        sentences.append("Here the weight of the retain answers is zero, so nothing protected them.")
    return sentences
