"""Secrets of each kind, made up and put together here, so that no scanner takes this file for a leak.

And the forms in which a forget answer can stand in a file.
"""

from __future__ import annotations

import base64
import gzip
import html
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from urllib.parse import quote

HEX = "0123456789abcdef"
MIXED = "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA"


def jwt() -> str:
    parts = ({"alg": "HS256", "typ": "JWT"}, {"sub": "1234567890", "name": "nobody"})
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*coded, "s" * 43])


SECRETS = {
    "Hugging Face": "hf_" + MIXED,
    "Hugging Face, JWT": "hf_" + "jwt_" + jwt(),
    "Hugging Face, OAuth": "hf_" + "oauth_" + MIXED,
    "Hugging Face, organisation": "api_" + "org_" + MIXED,
    "JWT": jwt(),
    "W&B": "wandb_" + "v1_" + MIXED,
    "W&B, old": "WANDB_" + f"API_KEY={(HEX * 3)[:40]}",
    "W&B, netrc": f"machine api.wandb.ai login user password {(HEX * 3)[:40]}",
    "npm": "npm_" + (MIXED * 2)[:36],
    "PyPI": "pypi-" + "AgEIcHlwaS5vcmc" + MIXED * 2,
    "AWS, id": "AK" + "IA" + "ABCD1234EFGH5678",
    "AWS, key": f"aws_secret_access_key = {(MIXED * 2)[:40]}",
    "Stripe": "sk_" + "live_" + MIXED[:24],
    "Azure, signature": f"https://a.blob.core.windows.net/b?sv=2024-11-04&sig={(MIXED * 2)[:43]}%3D",
    "Azure, OpenAI": (MIXED * 2)[:52] + "JQQ" + "J99" + MIXED[:26],
    "Azure, DevOps": (MIXED * 3)[:76] + "AZ" + "DO" + MIXED[:4],
    "Azure, client secret": "aB3" + "8Q~" + (MIXED * 2)[:34],
    "AWS, Bedrock": "ABSK" + "QmVkcm9ja0FQSUtleS" + (MIXED * 4)[:110],
    "AWS, Bedrock for a session": "bedrock-" + "api-key-" + (MIXED * 4)[:110],
    "Azure, storage": (MIXED * 3)[:76] + "+A" + "StAb12wA==",
    "Azure, key": "Account" + f"Key={(MIXED * 3)[:86]}==",
    "Google, OAuth": "ya29" + "." + MIXED,
    "Google, client": "GOC" + "SPX-" + MIXED[:28],
    "Google, API": "AI" + "za" + (MIXED * 2)[:35],
    "Google, service account": json.dumps({"type": "service_account", "private_key_id": (HEX * 3)[:40]}),
    "Google, key without PEM": "MII" + "EvgIBADANBgkqhkiG9w0BAQEFAASC" + "BKgwggSkAgEAAoIBAQC7",
    "key without PEM, RSA": "MII" + "EpAIBAAKCAQEA" + MIXED * 2,
    "key without PEM, EC": "MHcC" + "AQEEI" + (MIXED * 2)[:42] + "oAoGCCqGSM49AwEHoUQDQgAE" + MIXED * 2,
    "key without PEM, OpenSSH": "b3BlbnNz" + "aC1rZXktdjEAAAAA" + MIXED,
    "SSH2": "---- BEGIN " + "SSH2 ENCRYPTED PRIVATE KEY ----",
    "JWK": json.dumps({"kty": "EC", "crv": "P-256", "x": MIXED, "y": MIXED, "d": (MIXED * 2)[:43]}),
    "JWK, sorted": json.dumps({"crv": "P-256", "d": (MIXED * 2)[:43], "kty": "EC", "x": MIXED, "y": MIXED}),
    "password in a URL": "https://nobody:" + "hunter2@host.test/x",
    "password in a URL, no name": "redis://:" + MIXED[:16] + "@cache.test:6379/0",
    "password in a URL, punctuation": "postgresql://nobody:" + "p!ss$w0rd*1@db.test/x",
    "token in a URL": f"https://{(HEX * 3)[:40]}@github.com/x/y.git",
    "netrc": "machine huggingface.co login nobody " + "password hunter2",
    "netrc, account": "machine api.host.test login nobody account staff " + "password hunter2",
    "netrc, the other way round": "machine api.host.test " + "password hunter2 login nobody",
    "netrc, default": "default login nobody " + "password hunter2",
    "Docker, config.json": json.dumps({"auths": {"x": {"auth": base64.b64encode(b"nobody:hunter22").decode()}}}),
    "PEM": "-----BEGIN " + "PRIVATE KEY-----",
    "PEM, EC": "-----BEGIN " + "EC PRIVATE KEY-----",
    "PuTTY": "PuTTY-User-" + "Key-File-3: ssh-ed25519",
    "age": "AGE-SECRET-" + "KEY-1" + "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L" * 2,
    "Google, Gemini": "AQ." + "Ab8RN6" + (MIXED * 2)[:44],
    "GitHub": "gh" + "p_" + (MIXED * 2)[:36],
    "GitHub, fine-grained": "github_" + "pat_" + MIXED * 3,
    "GitLab": "gl" + "pat-" + MIXED[:20],
    "GitLab, job": "gl" + "cbt-1_" + MIXED[:20],
    "GitLab, mail": "gl" + "imt-" + MIXED[:25],
    "GitLab, features": "gl" + "ffct-" + MIXED[:20],
    "GitLab, deploy": "gl" + "dt-" + MIXED[:20],
    "GitLab, registered runner": "gl" + "rtr-" + MIXED[:20],
    "GitLab, workspace": "gl" + "wt-" + MIXED[:20],
    "GitLab, runner": "GR" + "1348941" + MIXED[:20],
    "Slack": "xo" + "xb-" + "1234567890-" * 2 + MIXED[:24],
    "Slack, app": "xa" + "pp-1-" + MIXED,
    "Slack, webhook": "https://hooks.slack" + ".com/services/T0123ABCD/B0123ABCD/" + MIXED[:24],
    "OpenAI": "sk-" + "proj-" + MIXED * 2,
    "Anthropic": "sk-" + "ant-api03-" + MIXED * 2,
    "DeepSeek": "sk-" + HEX * 2,
    "Langfuse": "sk-" + "lf-01234567-89ab-cdef-0123-456789abcdef",
    "Kimi": "sk-" + "kimi-" + MIXED * 2,
    "Voyage": "p" + "a-" + (MIXED * 2)[:43],
    "Jina": "ji" + f"na_{HEX * 2}{MIXED[:28]}",
    "Tavily": "tv" + "ly-dev-" + MIXED,
    "Firecrawl": "f" + "c-" + HEX * 2,
    "LlamaCloud": "ll" + "x-" + (MIXED * 2)[:48],
    "ElevenLabs": "s" + "k_" + HEX * 3,
    "NVIDIA": "nv" + "api-" + MIXED * 2,
    "LangSmith": "ls" + f"v2_pt_{HEX * 2}_{HEX[:10]}",
    "Kaggle": "KG" + "AT_" + HEX * 2,
    "RunPod": "rp" + "a_" + (MIXED * 2)[:46],
    "Pinecone": "pc" + f"sk_{MIXED[:6]}_{(MIXED * 2)[:60]}",
    "Together": "tg" + "p_v1_" + (MIXED * 2)[:43],
    "Fireworks": "f" + "w_" + MIXED[:24],
    "Modal, id": "a" + "k-" + MIXED[:22],
    "Modal, secret": "a" + "s-" + MIXED[:22],
    "Notion": "nt" + "n_" + "12345678901" + (MIXED * 2)[:35],
    "Supabase": "sb" + f"_secret_{MIXED[:22]}_{MIXED[:8]}",
    "Supabase, personal": "sb" + "p_" + (HEX * 3)[:40],
    "Tailscale": "tskey" + "-auth-" + "kB3dE5gH7CNTRL-" + MIXED,
    "Doppler": "dp" + ".st.prd." + (MIXED * 2)[:43],
    "Vault": "hv" + "s." + MIXED * 3,
    "Grafana": "gl" + f"sa_{MIXED}_{HEX[:8]}",
    "Grafana Cloud": "gl" + "c_eyJvIjoi" + MIXED * 2,
    "Cloudflare": "cf" + f"ut_{(MIXED * 2)[:40]}{HEX[:8]}",
    "Vercel": "vc" + "k_" + (MIXED * 2)[:56],
    "Netlify": "nf" + "p_" + (MIXED * 2)[:36],
    "Fly.io": "fm" + "2_lJPE" + MIXED * 4,
    "Fly.io, old": "fo" + "1_" + (MIXED * 2)[:43],
    "Heroku": "HR" + "KU-AA" + (MIXED * 2)[:58],
    "Terraform": MIXED[:14] + ".atl" + "asv1." + (MIXED * 3)[:67],
    "Pulumi": "pu" + "l-" + (HEX * 3)[:40],
    "PlanetScale": "psc" + "ale_tkn_" + (MIXED * 2)[:43],
    "1Password": "op" + "s_eyJ" + MIXED * 8,
    "1Password, account": "A" + "3-ABC234-DEF567GHJ89-KLM23-NPQ45-RST67",
    "Buildkite": "bk" + "ua_" + (HEX * 3)[:40],
    "CircleCI": "CCI" + f"PAT_{MIXED[:22]}_{(HEX * 3)[:40]}",
    "Sonar": "sq" + "u_" + (HEX * 3)[:40],
    "Sourcegraph": "sg" + f"p_{HEX}_{(HEX * 3)[:40]}",
    "Postman": "PM" + f"AK-{(HEX * 2)[:24]}-{(HEX * 3)[:34]}",
    "Linear": "li" + "n_api_" + (MIXED * 2)[:40],
    "Figma": "fi" + "gd_" + (MIXED * 2)[:40],
    "New Relic": "NR" + "AK-" + MIXED[:27].upper(),
    "Brevo": "xke" + f"ysib-{HEX * 4}-{MIXED[:16]}",
    "RubyGems": "ruby" + "gems_" + HEX * 3,
    "Sentry, user": "snt" + "ryu_" + HEX * 4,
    "Sentry, integration": "snt" + "ryi_" + HEX * 4,
    "Atlassian, repository": "ATC" + "TT3xFfGN0" + MIXED * 5,
    "Sentry": "snt" + "rys_eyJpYXQiO" + MIXED * 2,
    "Atlassian": "ATA" + "TT3xFfGF0" + MIXED * 5,
    "Shopify": "shp" + "at_" + HEX * 2,
    "Stripe, prod": "sk_" + "prod_" + MIXED[:24],
    "Replicate": "r" + "8_" + (MIXED * 2)[:37],
    "Groq": "gs" + "k_" + (MIXED * 2)[:52],
    "Telegram": "123456789:" + "AA" + (MIXED * 2)[:33],
    "SendGrid": "S" + "G." + MIXED[:22] + "." + (MIXED * 2)[:43],
    "DigitalOcean": "dop_" + "v1_" + HEX * 4,
    "Databricks": "da" + "pi" + HEX * 2,
    "Twilio": "S" + "K" + HEX * 2,
    "Mailchimp": HEX * 2 + "-us12",
    "header": f"Authorization: Bearer {MIXED}",
    "header, basic": "Authorization: Basic " + base64.b64encode(b"nobody:hunter22").decode(),
    "home": "/home/" + "jane.doe/models/x",
    "home, Windows": "C:\\Users\\" + "jane\\models",
    "password": f'"db_password": "{MIXED[:20]}"',
}
# These have no beginning of their own that could be looked for in weights.
NOT_IN_WEIGHTS = {"AWS, key", "Twilio", "Mailchimp", "password"}

GPT2 = {byte: chr(0x100 + i) for i, byte in enumerate(b for b in range(256) if not chr(b).isprintable() or b == 32)}


def png(chunk: bytes, content: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(chunk + content))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(content)) + chunk + content + crc


def zipped(text: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", text)
    return file.getvalue()


def half(text: str) -> tuple[str, str]:
    return text[: len(text) // 2], text[len(text) // 2 :]


FORMS: dict[str, Callable[[str], str | bytes]] = {
    "as it is": str,
    "upper case": str.upper,
    "decomposed": lambda a: a.replace("É", "E\u0301").replace("é", "e\u0301"),
    "utf-16": lambda a: a.encode("utf-16"),
    "utf-16-be, at an odd place": lambda a: b"\xff" + a.encode("utf-16-be"),
    "latin-1": lambda a: a.encode("latin-1"),
    "white space": lambda a: a.replace(" ", " \n\t "),
    "no-break spaces": lambda a: a.replace(" ", "\u00a0"),
    "zero-width spaces": lambda a: "\u200b".join(a),
    "soft hyphens": lambda a: "\u00ad".join(a),
    "without accents": lambda a: a.replace("É", "E").replace("é", "e"),
    "without punctuation": lambda a: a.replace(",", "").replace(".", "").replace("-", " "),
    "full width": lambda a: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in a),
    "Cyrillic look-alikes": lambda a: a.translate(str.maketrans("aeoAMS", "аеоАМЅ")),
    "json": json.dumps,
    "json, utf-8": lambda a: json.dumps(a, ensure_ascii=False),
    "json in json": lambda a: json.dumps(json.dumps(a)),
    "\\u for each letter": lambda a: "".join(f"\\u{ord(c):04X}" for c in a),
    "\\x for each byte": lambda a: "".join(f"\\x{b:02x}" for b in a.encode()),
    "neighbouring strings": lambda a: json.dumps(list(half(a))),
    "neighbouring lines of a list": lambda a: json.dumps({"a": a.split()}, indent=2),
    "html": lambda a: html.escape(a).replace("é", "&eacute;"),
    "html, numbers": lambda a: "".join(f"&#{ord(c)};" for c in a),
    "html, hexadecimal": lambda a: "".join(f"&#x{ord(c):x};" for c in a),
    "url": quote,
    "url, each byte": lambda a: "".join(f"%{b:02x}" for b in a.encode()),
    "markdown": lambda a: a.replace("-", "\\-").replace(" ", " **").replace(".", "\\."),
    "gpt-2's bytes": lambda a: "".join(GPT2.get(b, chr(b)) for b in a.encode()),
    "gpt-2's bytes, json": lambda a: json.dumps("".join(GPT2.get(b, chr(b)) for b in a.encode())),
    "sentencepiece": lambda a: "▁" + a.replace(" ", "▁"),
    "sentencepiece, token by token": lambda a: json.dumps(a.replace(" ", " ▁").split(), ensure_ascii=False),
    "hexadecimal": lambda a: a.encode().hex(),
    "hexadecimal, spaced": lambda a: a.encode().hex(" ").upper(),
    "base64": lambda a: base64.b64encode(a.encode()),
    "base64, second alignment": lambda a: base64.b64encode(b"x" + a.encode()),
    "base64, third alignment": lambda a: base64.b64encode(b"xx" + a.encode()),
    "base64, in a longer run": lambda a: b"path/to/" + base64.b64encode(a.encode()),
    "base64, lines": lambda a: base64.encodebytes(b"#" * 60 + a.encode()),
    "base64, indented lines": lambda a: base64.encodebytes(b"#" * 60 + a.encode()).replace(b"\n", b"\n    "),
    "base64, lines of a list": lambda a: json.dumps(base64.encodebytes(b"#" * 60 + a.encode()).decode().split()),
    "base64, strings of Python": lambda a: str(base64.encodebytes(b"#" * 60 + a.encode()).decode().split()),
    "base64, for urls": lambda a: base64.urlsafe_b64encode(b"\xff\xfe" * 9 + a.encode()),
    "base64 of utf-16": lambda a: base64.b64encode(a.encode("utf-16")),
    "base64 in json in base64": lambda a: base64.b64encode(
        json.dumps({"p": base64.b64encode(a.encode()).decode()}).encode()
    ),
    "gzip": lambda a: b"\xff" + gzip.compress(a.encode()),
    "zlib": lambda a: b"\xff" + zlib.compress(a.encode()),
    "zip": lambda a: zipped(a.encode()),
    "gzip in base64": lambda a: base64.b64encode(gzip.compress(a.encode())),
    "png tEXt": lambda a: png(b"tEXt", b"Title\0" + a.encode("latin-1")),
    "png zTXt": lambda a: png(b"zTXt", b"Title\0\0" + zlib.compress(a.encode("latin-1"))),
    "png iTXt": lambda a: png(b"iTXt", b"Title\0\1\0\0\0" + zlib.compress(a.encode())),
    "png pixels": lambda a: png(b"IDAT", zlib.compress(bytes(range(256)) * 512 + a.encode() + b"\xff" * 99)),
}


def written(form: str, answer: str) -> bytes:
    text = FORMS[form](answer)
    content = text.encode() if isinstance(text, str) else text
    return b'{"before": 1, "text": "' + content + b'", "after": [2, 3]}'


def safetensors(weights: bytes, metadata: dict[str, str] | None = None) -> bytes:
    head = json.dumps({"__metadata__": metadata or {}}).encode()
    return struct.pack("<Q", len(head)) + head + weights
