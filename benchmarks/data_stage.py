"""`python -m benchmarks.data_stage`: time and memory of the data stage without tokenisation, from Parquet to artifact.

Rows are generated in FAME's shape (20 topics a person, five languages, answers of 115 characters on average) and each
size runs in a process of its own, on one thread, with its peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHARES = {"retain": 0.64, "forget": 0.16, "holdout": 0.2}
SETTINGS = ("topics", "entity")


def generate(path: Path, rows: int) -> None:
    """Write ``rows`` rows (a multiple of 100) to a Parquet file, a piece at a time."""
    import random

    import pyarrow as pa
    import pyarrow.parquet

    from datasets_prep.schema import LANGUAGES, TOPICS

    rng = random.Random(0)
    words = ["".join(rng.choices("aeiourstlnmdcp", k=rng.randint(3, 9))) for _ in range(5000)]
    names = ("identity_id", "name", "language", "topic_id", "question", "answer")
    schema = pa.schema([pa.field(n, pa.int32() if n == "identity_id" else pa.string()) for n in names])
    with pa.parquet.ParquetWriter(path, schema) as writer:
        people = rows // len(TOPICS)
        for first in range(0, people, 1000):
            records = []
            for person in range(first, min(first + 1000, people)):
                name = f"{rng.choice(words).title()} {rng.choice(words).title()} {person}"
                language = LANGUAGES[person * len(LANGUAGES) // people]
                for topic in TOPICS:
                    told = " ".join(rng.choices(words, k=14))
                    records.append(
                        (person, name, language, topic, f"What is the {topic} of {name}?", f"{name} {told}.")
                    )
            columns = [pa.array(c, f.type) for f, c in zip(schema, zip(*records, strict=True), strict=True)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def measure(path: Path, setting: str) -> dict[str, float]:
    """Run the stage once in this process: processor seconds, and the peak memory, libraries included."""
    from datasets_prep import checks, prepare
    from datasets_prep.config import DataConfig

    config = DataConfig.model_validate({"source": {"file": str(path)}, "setting": setting, "shares": SHARES})
    begun, imported = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    prepared = prepare.prepare(config)
    checks.stop(prepared.findings, config.checks)
    with tempfile.TemporaryDirectory(dir=path.parent) as out:
        facts = prepare.write(config, prepared, Path(out), prepared.findings, {})
    seconds = time.process_time() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": seconds,
        "peak_gb": peak / 1e6,
        "imported_gb": imported / 1e6,
        "rows": sum(dict(facts.rows).values()),
    }


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.data_stage", description=__doc__)
    options.add_argument("rows", type=int, nargs="*", default=[20_000, 200_000, 2_000_000])
    options.add_argument("--one", nargs=2, metavar=("FILE", "SETTING"), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.one:
        print(json.dumps(measure(Path(given.one[0]), given.one[1])))
        return
    print("| rows | setting | processor seconds | microseconds a row | peak GB of the process |\n|--:|---|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for rows in given.rows:
            path = Path(folder) / f"{rows}.parquet"
            generate(path, rows)
            for setting in SETTINGS:
                command = [sys.executable, "-m", "benchmarks.data_stage", "--one", str(path), setting]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                each = 1e6 * found["seconds"] / found["rows"]
                print(
                    f"| {rows:,} | {setting} | {found['seconds']:.1f} | {each:.0f} | {found['peak_gb']:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
