"""Secrets of each kind, made up and put together here, so that no scanner takes this file for a leak."""

from __future__ import annotations

import base64
import json

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
    "Azure, key": "Account" + f"Key={(MIXED * 3)[:86]}==",
    "Google, OAuth": "ya29" + "." + MIXED,
    "Google, client": "GOC" + "SPX-" + MIXED[:28],
    "Google, API": "AI" + "za" + (MIXED * 2)[:35],
    "Google, service account": json.dumps({"type": "service_account", "private_key_id": (HEX * 3)[:40]}),
    "Google, key without PEM": "MII" + "EvgIBADANBgkqhkiG9w0BAQEFAASC" + "BKgwggSkAgEAAoIBAQC7",
    "password in a URL": "https://nobody:" + "hunter2@host.test/x",
    "PEM": "-----BEGIN " + "PRIVATE KEY-----",
    "PEM, EC": "-----BEGIN " + "EC PRIVATE KEY-----",
    "PuTTY": "PuTTY-User-" + "Key-File-3: ssh-ed25519",
    "age": "AGE-SECRET-" + "KEY-1" + "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L" * 2,
    "GitHub": "gh" + "p_" + (MIXED * 2)[:36],
    "GitHub, fine-grained": "github_" + "pat_" + MIXED * 3,
    "GitLab": "gl" + "pat-" + MIXED[:20],
    "Slack": "xo" + "xb-" + "1234567890-" * 2 + MIXED[:24],
    "Slack, app": "xa" + "pp-1-" + MIXED,
    "Slack, webhook": "https://hooks.slack" + ".com/services/T0123ABCD/B0123ABCD/" + MIXED[:24],
    "OpenAI": "sk-" + "proj-" + MIXED * 2,
    "Anthropic": "sk-" + "ant-api03-" + MIXED * 2,
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
