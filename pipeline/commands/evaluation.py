"""`eval`: metrics from existing measurements, without a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from eval.records.tofu_logs import compare_logs
from pipeline.commands.shared import show


def from_logs(options: argparse.Namespace) -> int:
    """Print TOFU's forget quality and model utility from two logs. Raises InputError if one cannot be used."""
    result = compare_logs(Path(options.full), Path(options.retain))
    utility = result["model_utility"]
    lines = [f"forget quality {result['forget_quality']:.4g}  (KS statistic {result['ks_statistic']:.4f})"]
    lines += ["", f"{'model utility':<30}{'full':>8}{'retain':>8}"]
    lines += [
        f"  {part:<28}{value:>8.4f}{utility['retain']['parts'][part]:>8.4f}"
        for part, value in utility["full"]["parts"].items()
    ]
    lines.append(f"  {'harmonic mean':<28}{utility['full']['value']:>8.4f}{utility['retain']['value']:>8.4f}")
    show(options, result, "\n".join(lines))
    return 0
