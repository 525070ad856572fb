"""`python -m benchmarks.languages FILE`: how often the language check is wrong, and how often it sees a wrong language.

FILE holds rows whose declared language is known to be right, for example FAME's retain split.
"""

from __future__ import annotations

import sys

from datasets_prep import sources
from datasets_prep.config import DataConfig
from datasets_prep.text import language_identifier


def main() -> None:
    """Print the counts."""
    request = {"forget": [{"languages": ["EN"]}]}
    config = DataConfig.model_validate({"source": {"file": sys.argv[1]}, "setting": "request", "request": request})
    identify = language_identifier()
    rows = right = wrong = 0
    for row in sources.load(config).rows:
        seems = identify(f"{row.question} {row.answer}")
        rows += 1
        right += seems == row.language
        wrong += seems not in (None, row.language)
    print(f"{rows} rows: {wrong} taken for another language (false alarms), {right} recognised ({right / rows:.1%}),")
    print(f"{rows - right - wrong} not certain. Declared wrongly, the {right} would be found and the others not.")


if __name__ == "__main__":
    main()
