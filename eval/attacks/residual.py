"""The residual stream: what each layer of a model hands to the next one, to be read or changed while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

Act = Callable[[torch.Tensor], object]


def layers_of(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The decoder's layers, from the first to the last."""
    return list(model.get_decoder().layers)


@contextmanager
def at_layers(model: PreTrainedModel, acts: Mapping[int, Act]) -> Iterator[None]:
    """Inside the ``with`` block each forward gives the outputs (batch, time, width) of these layers to their functions.

    A function may read an output, or change it in place before the next layer gets it.
    """
    layers = layers_of(model)
    with ExitStack() as stack:
        for index, act in acts.items():
            stack.callback(layers[index].register_forward_hook(partial(_give, act)).remove)
        yield


def _give(act: Act, layer: torch.nn.Module, inputs: Any, output: Any) -> None:
    act(output[0] if isinstance(output, tuple) else output)  # the layers of some models return more than the states
