"""Weights that ZeRO 3 gathers, keeps from the forward to the backward pass, or gathers again."""

import numpy as np

from autotune.cost.columns import Array, Columns
from autotune.cost.setting import Setting


def kept_gathered(columns: Columns, parameters: Array, setting: Setting) -> Array:
    """Gathered weights that a rank holds at the end of a forward pass, of `parameters` [n, s]."""
    first = _layer(columns, setting) * _first_are_released(columns, parameters, setting)
    kept: Array = np.minimum(parameters - np.minimum(first, parameters), _most(setting))
    return kept


def gathered_again(columns: Columns, parameters: Array, setting: Setting) -> Array:
    """Weights that are gathered for the backward pass, of `parameters` [n, s], as they were not
    kept."""
    first = _matrix(columns, setting) + _layer(columns, setting)
    first = first * _first_are_released(columns, parameters, setting)
    again: Array = np.maximum(parameters - _most(setting), np.minimum(first, parameters))
    return again


def _first_are_released(columns: Columns, parameters: Array, setting: Setting) -> Array:
    """1 where DeepSpeed releases embedding and first block, though more could be kept.

    It keeps weights whose next use is not further ahead than so many weights, counted to the end
    of the model and back; and those that prefetching has passed, which begins with the first block
    (counted in traces of 4 to 40 blocks).
    """
    ahead = 2 * (parameters - _matrix(columns, setting))
    released: Array = ((ahead > _most(setting)) & (_most(setting) > 0)).astype(float)
    return released


def _most(setting: Setting) -> float:
    return setting.trainer.kept_parameters


def _matrix(columns: Columns, setting: Setting) -> Array:
    """Weights of the embedding on a rank [n, 1]."""
    matrix: Array = setting.model.vocab_size * setting.model.hidden_size / columns.tensor_parallel
    return matrix[:, None]


def _layer(columns: Columns, setting: Setting) -> Array:
    """Weights of a block on a rank [n, 1]."""
    layer: Array = setting.model.layer_parameters / columns.tensor_parallel
    return layer[:, None]
