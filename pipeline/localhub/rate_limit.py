"""How many requests a token may send in a window of time, and the headers that say it."""

from __future__ import annotations

import threading
import time

from pipeline.localhub.refusal import Refusal

WINDOW = 300  # seconds, as on the real Hub


class RateLimit:
    """``requests`` in each window, for each token and for all who have none together."""

    def __init__(self, requests: int) -> None:
        self._requests = requests
        self._started = time.monotonic()
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def take(self, sender: str) -> dict[str, str]:
        """Count a request; the headers of its answer. 429 if there were too many."""
        with self._lock:
            now = time.monotonic()
            if now - self._started >= WINDOW:
                self._started, self._counts = now, {}
            count = self._counts[sender] = self._counts.get(sender, 0) + 1
        left = max(self._requests - count, 0)
        reset = max(1, round(self._started + WINDOW - now))
        policy = f'"fixed window";"api";q={self._requests};w={WINDOW}'
        headers = {"RateLimit": f'"api";r={left};t={reset}', "RateLimit-Policy": policy}
        if count > self._requests:
            raise Refusal(429, f"You have sent more than {self._requests} requests.", headers=headers)
        return headers
