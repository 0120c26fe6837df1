"""The places of a sample's tokens, as Qwen2.5-VL and Qwen3-VL turn them (mRoPE)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pathor1.errors import DataError


def positions(is_image: npt.NDArray[np.bool_], grids: npt.NDArray[np.int64], merge: int) -> npt.NDArray[np.int64]:
    """[4, n]: a token's number in the sample, by which packed samples are told apart, and its time, row and column.

    is_image: [n]; grids: [m, 3] patches in time, height and width of each picture, `merge` x `merge` of which are a
    token. Text goes on by one in all three; a picture's tokens have their rows and columns from where the text has
    come to, and the text behind it goes on from the larger of the two (Qwen2-VL, section 2.1). Raises DataError where
    there are not as many image tokens as the grids say.
    """
    found = np.zeros((4, len(is_image)), dtype=np.int64)
    found[0] = np.arange(len(is_image))
    wanted = int(grids.prod(axis=1).sum()) // merge**2
    if int(is_image.sum()) != wanted:
        raise DataError(f"{int(is_image.sum())} image tokens for pictures of {wanted}; the model's processor is broken")
    token, place = 0, 0
    for time, height, width in grids.tolist():
        rows, columns = height // merge, width // merge
        text = int(np.argmax(is_image[token:]))  # tokens before the picture
        found[1:, token : token + text] = np.arange(place, place + text)
        token, place = token + text, place + text
        count = time * rows * columns
        found[1:, token : token + count] = np.indices((time, rows, columns)).reshape(3, -1) + place
        token, place = token + count, place + max(rows, columns)
    found[1:, token:] = np.arange(place, place + len(is_image) - token)
    return found
