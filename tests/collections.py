"""A collection on a tiny model: two methods, of which one fails its gate."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import ROOT

RECIPE = """\
extends: {demo}
name: tiny
model: {{pypi: null, path: {model}, parameters: null, chat_template: null}}
data:
  source: {{sample: {{seed: 3, identities: 3, topics: 4}}}}
  shares: {{retain: 0.34, forget: 0.33, holdout: 0.33}}
  perturbed: {{per_row: 1, retain_rows: 10}}
base: {{train: {{precision: fp32, train_from_layer: 1, args: {{num_train_epochs: 1, save_steps: 5}}}}}}
gold: {{train: {{precision: fp32, train_from_layer: 1, args: {{num_train_epochs: 1, save_steps: 5}}}}, seeds: null}}
unlearn:
  {{method: gd, precision: fp32, epochs: 1, retain_weight: 1.0, neighbours: null, train_from_layer: 0,
    args: {{save_steps: 2}}}}
eval: {{max_new_tokens: 4, bootstrap_samples: 100, robustness: null, relative: false}}
gates: [{{metric: answer_probability, split: forget, at_most: 0.5, min_n: 5, reason: a model that knows nothing}}]
resources:
  cpus: 1
  memory_gb: 2
  hours: 0.1
"""
COLLECTION = """\
collection:
  name: tinies
  title: Tiny models
  description: For a test.
  repo: demo/comparison
  recipe: tiny
  matrix:
    setting:
      topics: {label: Topics}
      entity: {data: {setting: entity}}
    method:
      gd: {label: GD}
      ga:
        label: GA
        unlearn: {method: ga, retain_weight: null, retain_rows_per_forget_row: null}
        gates: [{metric: answer_probability, split: forget, at_most: 1.0e-12, min_n: 5, reason: nobody passes it}]
  leave_out: [{setting: entity, method: gd}, {setting: entity, method: ga}]
  each: {publish: {repo: "demo/tiny-{setting}-{method}"}}
"""


def write_collection(folder: Path, model: Path) -> Path:
    (folder / "tiny.yaml").write_text(RECIPE.format(demo=ROOT / "pipeline" / "recipes" / "demo.yaml", model=model))
    path = folder / "tinies.yaml"
    path.write_text(COLLECTION)
    return path
