"""Position ids of a batch as a nested tensor whose ragged dimension is the tokens, which verl's engine takes as given.

The queue makes one nested tensor of its rollouts' [R, n] position ids (R rows: of the text, and of mRoPE's time, height
and width), and torch takes the first dimension in which they differ for the ragged one. Where all rollouts of a batch
have the same number of tokens none does, torch takes the rows, and verl sets the ragged dimension to the tokens without
the offsets: such a step fails. Short questions whose answers are all cut at the limit are such a batch.
"""

from __future__ import annotations

from tensordict import TensorDict
from verl.utils import tensordict_utils
from verl.workers import engine_workers
from verl.workers.engine import base


def make_tokens_ragged(data: TensorDict) -> None:
    """Mends `position_ids` of `data` [b], a nested tensor of [R, n] for each rollout, in place.

    A batch without them, or whose model has one row of them that is not kept apart, is left as it is.
    """
    if "position_ids" not in data.keys():  # noqa: SIM118 (a TensorDict)
        return
    ids = data["position_ids"]
    if not (ids.is_nested and ids.dim() == 3):
        return
    values, offsets = ids.values(), ids.offsets()
    # [b * R, n] where the rows are ragged, [R, all tokens] otherwise; a batch has more tokens than rows.
    if int(offsets[-1]) == values.shape[0]:
        rollouts = values.view(len(offsets) - 1, -1, values.shape[1]).unbind()
        data["position_ids"] = tensordict_utils.nested_tensor_from_tensor_list(list(rollouts), ragged_idx=2)
    else:
        # Lost where a TensorDict is pickled.
        ids._ragged_idx = 2


def install() -> None:
    """In the place of verl's `maybe_fix_3d_position_ids`, wherever it is called; again does nothing."""
    for module in (tensordict_utils, engine_workers, base):
        module.maybe_fix_3d_position_ids = make_tokens_ragged
