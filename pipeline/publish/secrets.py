"""Secrets: the patterns of detect-secrets, and those that it lacks for the Hub and its neighbours.

detect-secrets is used in its maintained form, bc-detect-secrets. Its patterns alone are taken: it asks no service about
what it finds, and a comment in a file (``pragma: allowlist secret``) excuses nothing. Vectorscan says in one pass which
patterns a text may have; only these are then looked for with :mod:`re`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

from pipeline.publish.matcher import Matcher, may_match

# Not used: two that fit digests too unless the lines around them are read, and one that vectorscan cannot look for.
_LEFT_OUT = ("AzureStorageKeyDetector", "IbmCloudIamDetector", "ArtifactoryDetector")

HOME = "a path in somebody's home"
_OURS = [
    ("a Hugging Face token", r"hf_[A-Za-z0-9]{30,}"),
    ("a Hugging Face token", r"hf_(?:jwt|oauth)_[\w.-]{16,}"),
    ("a Hugging Face token", r"api_org_[A-Za-z0-9]{30,}"),
    ("a Weights & Biases key", r"wandb_v\d_\w{30,}"),
    ("a Weights & Biases key", r"(?i)wandb[\s\S]{0,60}?(?:key|login|password|token)[\s\S]{0,30}?\b[0-9a-f]{40}\b"),
    ("a private key", r"----[ -]BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY"),
    ("a private key", r"MII[A-Za-z0-9+/]{2,8}IBADANBgkqhkiG9w0BAQEFAASC"),  # PKCS 8 without its PEM lines: RSA,
    ("a private key", r"MIG[A-Za-z0-9+/]AgEAM[A-Za-z0-9+/]{2}GByqGSM49AgEG"),  # elliptic curves,
    ("a private key", r"MC4CAQAwBQYDK2V[uw]BCIEI[A-Za-z0-9+/]{40}"),  # Ed25519 and X25519
    ("a private key", r"MII[A-Za-z0-9+/]{2}[AQgw]IBAAK[BC]"),  # PKCS 1: RSA
    ("a private key", r"M(?:HcCAQEEI|IGkAgEBBD|IHcAgEBBE)[A-Za-z0-9+/]{40}"),  # SEC 1: elliptic curves
    ("a private key", r"b3BlbnNzaC1rZXktdjEA"),  # OpenSSH
    ("a private key", r'"kty"[^{}]*"d"\s*:\s*"[\w-]{40}'),  # JWK (RFC 7517), and with its members the other way round
    ("a private key", r'"d"\s*:\s*"[\w-]{40,}"[^{}]*"kty"'),
    ("a private key", r"PuTTY-User-Key-File-\d:"),
    ("a private key", r"AGE-SECRET-KEY-1[0-9A-Z]{50,}"),
    ("a service account's key", r'"private_key_id"\s*:\s*"[0-9a-f]{40}"'),
    ("an AWS access key", r"(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])"),
    ("an AWS Bedrock key", r"ABSKQmVkcm9ja0FQSUtleS[A-Za-z0-9+/]{80,}"),
    ("an AWS Bedrock key", r"bedrock-api-key-[A-Za-z0-9+/]{40,}"),
    ("an Azure storage key", r"[A-Za-z0-9+/]{76}\+ASt[A-Za-z0-9+/]{5}[AQgw]=="),
    ("an Azure storage key", r"(?:AccountKey|SharedAccessKey)=[A-Za-z0-9+/]{40,}"),
    ("an Azure key", r"[A-Za-z0-9]{32}JQQJ99[A-Za-z0-9]{26}"),
    ("an Azure DevOps token", r"[A-Za-z0-9]{76}AZDO[A-Za-z0-9]{4}"),
    ("an Azure client secret", r"[\w~.-]{3}\dQ~[\w~.-]{31}"),
    ("an Azure signature", r"[?&]sig=[A-Za-z0-9+/%]{42,}(?:=|%3D)"),
    ("a GitHub token", r"github_pat_\w{60,}"),
    ("a GitHub token", r"gh[pousr]_[A-Za-z0-9]{36}"),
    ("a GitLab token", r"gl(?:pat|dt|ft|soat|rtr?|ptt|oas|agent|cbt|imt|ffct|wt)-[\w-]{20,}"),
    ("a GitLab token", r"\bGR1348941[\w-]{20}"),
    ("a Slack token", r"xox[a-z](?:\.xox[a-z])?-[\w-]{20,}"),
    ("a Slack token", r"xapp-\d-[\w-]{20,}"),
    ("a webhook's address", r"hooks\.slack\.com/(?:services|workflows|triggers)/[\w/]{20,}"),
    ("a webhook's address", r"discord(?:app)?\.com/api/webhooks/\d+/[\w-]{20,}"),
    ("a Google key", r"AIza[\w-]{35}"),
    ("a Google key", r"ya29\.[\w-]{20,}"),
    ("a Google key", r"GOCSPX-[\w-]{20,}"),
    ("a Google key", r"\b1//0[\w-]{40,}"),
    ("a Google key", r"\bAQ\.Ab8[\w-]{30,}"),
    ("an OpenAI key", r"\bsk-[\w-]{0,120}T3BlbkFJ[\w-]{20}"),
    # Also of OpenRouter, Langfuse, Kimi, DeepSeek and Cerebras. Only behind a known word may a key have - and _, as
    # slugs do.
    ("an OpenAI or Anthropic key", r"\bsk-(?:proj|svcacct|admin|ant-\w{5,8}|or-v1|lf|kimi)-[\w-]{32,}"),
    ("an OpenAI or Anthropic key", r"\bc?sk-[A-Za-z0-9]{32,}"),
    ("a Groq key", r"gsk_[A-Za-z0-9]{40,}"),
    ("a Replicate key", r"\br8_[A-Za-z0-9]{30,}"),
    ("an xAI or Perplexity key", r"\b(?:xai|pplx)-[A-Za-z0-9]{40,}"),
    ("an NVIDIA key", r"\bnvapi-[\w-]{40,}"),
    ("a LangSmith key", r"\blsv2_[a-z]{2}_[0-9a-f]{32}_[0-9a-f]{10}"),
    ("a Kaggle token", r"\bKGAT_[0-9a-f]{32}"),
    ("a RunPod key", r"\brpa_[A-Za-z0-9]{40,}"),
    ("a Pinecone key", r"\bpcsk_[A-Za-z0-9]{4,8}_[A-Za-z0-9]{50,}"),
    ("a Together key", r"\btgp_v\d_[\w-]{40,}"),
    ("a Fireworks key", r"\bfw_(?=[A-Za-z0-9]*\d)(?=[A-Za-z0-9]*[A-Z])[A-Za-z0-9]{22,26}(?![A-Za-z0-9])"),
    ("a Modal token", r"\ba[ks]-(?=[A-Za-z0-9]*\d)(?=[A-Za-z0-9]*[A-Z])[A-Za-z0-9]{22}(?![A-Za-z0-9])"),
    ("a Voyage key", r"(?<![\w-])pa-(?=[\w-]{0,42}\d)(?=[\w-]{0,42}[A-Z])[\w-]{43}(?![\w-])"),
    ("a Jina key", r"\bjina_[0-9a-f]{32}[\w-]{20,}"),
    ("a Tavily key", r"\btvly-(?:dev-|prod-)?(?=[A-Za-z0-9]*\d)[A-Za-z0-9]{30,}"),
    ("a Firecrawl key", r"\bfc-[0-9a-f]{32}(?![0-9a-f])"),
    ("a LlamaCloud key", r"\bllx-(?=[A-Za-z0-9]*\d)[A-Za-z0-9]{40,}"),
    ("an ElevenLabs key", r"\bsk_[0-9a-f]{48}(?![0-9a-f])"),
    ("a Notion token", r"\bntn_\d{8,}[A-Za-z0-9]{30,}"),
    ("a Supabase key", r"\b(?:sbp_[0-9a-f]{40}|sb_secret_[\w-]{30,})"),
    ("a Tailscale key", r"\btskey-[a-z]{3,8}-[A-Za-z0-9]{8,}-[A-Za-z0-9]{16,}"),
    ("a Doppler token", r"\bdp\.(?:ct|pt|sa|said|scim|audit|st(?:\.[\w-]{1,40})?)\.[A-Za-z0-9]{40,}"),
    ("a Cloudflare token", r"\bcf(?:k|ut|at)_(?=[\w-]{0,39}\d)[\w-]{40,}"),
    ("a Vercel token", r"\bvc[kpiar]_(?=[A-Za-z0-9]*\d)(?=[A-Za-z0-9]*[A-Z])[A-Za-z0-9]{24,}"),
    ("a Netlify token", r"\bnf[pcoub]_(?=[A-Za-z0-9]*\d)[A-Za-z0-9]{36,}"),
    ("a Fly.io token", r"\bf(?:o1_(?=[\w-]{0,42}\d)[\w-]{43}|m[12][ar]?_[A-Za-z0-9+/]{100,})"),
    ("a Heroku key", r"\bHRKU-AA[\w-]{50,}"),
    ("a Terraform token", r"\.atlasv1\.[\w=-]{60,}"),
    ("a Pulumi token", r"\bpul-[0-9a-f]{40}"),
    ("a PlanetScale token", r"\bpscale_(?:tkn|pw|oauth|app)_[\w.=-]{32,}"),
    ("a 1Password key", r"\bops_eyJ[A-Za-z0-9+/]{100,}"),
    ("a 1Password key", r"\bA3-[A-Z0-9]{6}-(?:[A-Z0-9]{11}|[A-Z0-9]{6}-[A-Z0-9]{5})(?:-[A-Z0-9]{5}){3}"),
    ("a CI token", r"\bbk(?:ua|at|ct|aj)_[0-9a-f]{40}"),  # Buildkite
    ("a CI token", r"\bCCIP(?:AT|RJ)_[A-Za-z0-9]{22}_[0-9a-f]{40}"),  # CircleCI
    ("a Sonar or Sourcegraph token", r"\bs(?:q[upa]|gp)_(?:[0-9a-f]{16}_)?[0-9a-f]{40}"),
    ("a Postman key", r"\bPMAK-[0-9a-f]{24}-[0-9a-f]{34}"),
    ("a Linear key", r"\blin_(?:api|oauth)_[A-Za-z0-9]{40,}"),
    ("a Figma token", r"\bfigd_[\w-]{40,}"),
    ("a New Relic key", r"\bNRAK-[A-Z0-9]{27}"),
    ("a Brevo key", r"\bxkeysib-[0-9a-f]{64}"),
    ("a RubyGems key", r"\brubygems_[0-9a-f]{48}"),
    ("a PyPI token", r"pypi-AgE[\w-]{50,}"),
    ("a Docker Hub token", r"dckr_[op]at_[\w-]{20,}"),
    ("a Stripe key", r"\b(?:[rs]k_(?:live|test|prod)|whsec)_[A-Za-z0-9]{20,}"),
    ("a DigitalOcean token", r"do[opr]_v1_[0-9a-f]{64}"),
    ("a Databricks token", r"\bdapi[0-9a-f]{32}"),
    ("a Vault token", r"\bhv[sbr]\.[\w-]{24,}"),
    ("a Grafana token", r"\bgl(?:sa_[A-Za-z0-9]{32}_[0-9a-f]{8}|c_eyJ[A-Za-z0-9+/]{30,})"),
    ("a Sentry token", r"\bsntry(?:s_eyJ[\w+/=-]{40,}|[aiu]_[0-9a-f]{64})"),
    ("an Atlassian token", r"\bAT(?:AT|CT)T3[\w=-]{60,}"),
    ("a Shopify token", r"\bshp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"),
    ("a Telegram token", r"(?<![\w:])\d{8,10}:AA[\w-]{33}"),
    ("a token in a header", r"(?i)\bbearer\s+(?=[\w.~+/-]*\d)[\w.~+/-]{20,}"),
    ("a password in a header", r"(?i)\bauthorization[\"']?\s*[:=]\s*[\"']?basic\s+[A-Za-z0-9+/]{12,}"),
    ("a password in a URL", r"://[^\s/?#@:\"<>`]*:(?![$<{%])[^\s/?#@\"<>`]{3,}@[\w.-]"),
    ("a token in a URL", r"://[\w-]{20,}@[\w-]+\.\w"),
    (
        "a password of a netrc file",
        r"\b(?:machine\s+\S+|default)\s+(?:(?:login|account)\s+(?!(?:and|or)\b)\S+\s+){1,2}password\s+\S",
    ),
    ("a password of a netrc file", r"\bmachine\s+\S+\s+password\s+\S+\s+(?:login|account)\s+\S"),
    ("a password of a Docker registry", r'"auths"\s*:[\s\S]{0,300}?"auth"\s*:\s*"[A-Za-z0-9+/]{8,}'),
    (
        HOME,
        r"(?:(?<!\.[a-z]{2})(?<!\.[a-z]{3})(?<!\.[a-z]{4})(?:/home|/Users)|\b[A-Z]:\\+Users)[/\\]+"
        r"(?!(?:user|username|runner|you)\b)[\w.-]+[/\\]",
    ),
    (HOME, r"(?<![\w.])/root/[\w.]"),
]
# On a site, /home and /Users are pages. An address ends where its query begins, which may hold a path.
_PAGE = re.compile(r"https?:[/\\]+[\w.-]+\.[A-Za-z]{2,}(?::\d+)?(?:[/\\]+[\w.~%+-]*)+")
# In weights, secrets are looked for behind these bytes.
BEGINNINGS = (
    b"hf_|api_org_|wandb|WANDB|PRIVATE KEY|IBADANBgkq|GByqGSM49|MC4CAQAw|IBAAKB|IBAAKC|MHcCAQEEI|IGkAgEBBD|IHcAgEBBE"
    b'|b3BlbnNzaC1r|"kty"|PuTTY-User-Key|AGE-SECRET-KEY-1|private_key_id|AKIA|ASIA|ABSKQmVk|AccountKey=|AccessKey='
    b"|JQQJ99|AZDO|7Q~|8Q~|sig=|github_pat_|ghp_|gho_|ghu_|ghs_|ghr_|glpat-|glcbt-|glimt-|glffct-|GR1348941|xox|xapp-"
    b"|hooks.slack.com|webhooks|AIza|ya29.|GOCSPX-|AQ.Ab8|sk-|gsk_|r8_|xai-|pplx-|nvapi-|lsv2_|KGAT_|rpa_|pcsk_|pypi-AgE"
    b"|dckr_|k_live_|k_test_|k_prod_|whsec_|_v1_|dapi|hvs.|glsa_|glc_eyJ|sntrys_|ATATT3|shpat_|:AA|earer |asic "
    b'|machine |"auths"|/home/|/Users/|Users\\|/root/|eyJ|npm_|SG.|://|sq0csp-'
    b"|tgp_v|fw_|ak-|as-|ntn_|sbp_|sb_secret_|tskey-|dp.|gldt-|glft-|glsoat-|glrt-|glrtr-|glptt-|gloas-|glagent-|glwt-"
    b"|sntrya_|sntryi_|sntryu_|ATCTT3|default login |default account |bedrock-api-key-|+ASt|jina_|tvly-|fc-|llx-|sk_"
    b"|cfk_|cfut_|cfat_|vck_|vcp_|vci_|vca_|vcr_|nfp_|nfc_|nfo_|nfu_|nfb_|fo1_|fm1_|fm2_|fm1a_|fm1r_|fm2a_|fm2r_|HRKU-"
    b"|.atlasv1.|pul-|pscale_|ops_eyJ|A3-|bkua_|bkat_|bkct_|bkaj_|CCIPAT_|CCIPRJ_|squ_|sqp_|sqa_|sgp_|PMAK-|lin_api_"
    b"|lin_oauth_|figd_|NRAK-|xkeysib-|rubygems_|pa-|shpca_|shppa_|shpss_|hvb.|hvr.|1//0"
).split(b"|")

_ASSIGNED = re.compile(
    r"(?i)(?:key|token|secret|passw(?:or)?d|pwd|credentials?)[\"']?\s*[:=]\s*[\"']?([A-Za-z0-9+/_.=-]{16,200})"
)
ENTROPY = 3.5  # bits a character: words and dates have less, keys more


class _Rule(NamedTuple):
    kind: str
    pattern: re.Pattern[str]
    is_in: Callable[[str], object]


def secrets(text: str, *, assigned: bool) -> Iterator[str]:
    """The kinds of secrets in a text.

    With ``assigned`` also values without a form of their own: random characters behind ``password:`` and the like. In
    vocabularies and weights, such a rule finds chance.
    """
    for rule in _rules().found(text.encode(errors="ignore")):
        if rule.is_in(text):
            yield rule.kind
    if assigned and any(map(_is_random, _ASSIGNED.findall(text))):
        yield "a password or key"


def _is_random(value: str) -> bool:
    has_both = re.search(r"\d", value) and len(set(re.findall(r"[A-Za-z]", value))) > 2
    return bool(has_both) and _entropy(value) >= ENTROPY


def _entropy(value: str) -> float:
    """Shannon's entropy of the characters, in bits a character."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())


@cache
def _rules() -> Matcher[_Rule]:
    ours = [(kind, re.compile(pattern, re.ASCII)) for kind, pattern in _OURS]
    rules = [_Rule(k, p, partial(_off_sites, p) if k == HOME else p.search) for k, p in ours]
    rules += [
        _Rule(f"a secret ({detector.secret_type})", pattern, partial(_any, detector.analyze_string))
        for detector in _detectors()
        for pattern in detector.denylist
    ]
    return Matcher((may_match(rule.pattern), rule) for rule in rules)


def _off_sites(pattern: re.Pattern[str], text: str) -> bool:
    return pattern.search(_PAGE.sub(" ", text)) is not None


def _any(found: Callable[[str], Iterable[str]], text: str) -> bool:
    return any(True for _ in found(text))  # a detector may find an empty text: that of a group without a match


def _detectors() -> list[Any]:
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    from detect_secrets.plugins.base import RegexBasedDetector

    kinds = get_mapping_from_secret_type_to_class().values()
    return [k() for k in kinds if issubclass(k, RegexBasedDetector) and k.__name__ not in _LEFT_OUT]
