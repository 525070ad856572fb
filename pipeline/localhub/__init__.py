"""A Hugging Face Hub on this machine, for the unmodified ``huggingface_hub`` client.

It speaks the client's HTTP protocol on 127.0.0.1 and refuses what the real Hub refuses, so publishing can be shown and
tested without an account. ``repository`` keeps the repositories as git, ``app`` answers requests, ``messages`` reads
request bodies and builds answers, ``server`` runs it.
"""
