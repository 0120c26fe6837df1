"""The rows of the stages from subfields to training sets: one Arrow schema each.

Pictures stay in the rows of `panels`: `item` is the id of one there, and `image_sha256` the digest of its picture.
"""

from __future__ import annotations

import pyarrow as pa


def field(name: str, type_: pa.DataType, doc: str) -> pa.Field:
    """A column that is never null, with what it is."""
    return pa.field(name, type_, nullable=False, metadata={"doc": doc})


_TEXTS = pa.list_(pa.string())
_PICTURE = field("image_sha256", pa.string(), "of the picture's pixels")
_SUBFIELD = field("subfield", pa.string(), "histopathology, gross, ihc, cytology or fish")

SUBFIELD = pa.schema(
    [
        field("id", pa.string(), "of the item, in panels"),
        _PICTURE,
        _SUBFIELD,
        field("by", pa.string(), "label where a person said so, predicted where the classifier did"),
        field("predicted", pa.string(), "what the classifier says"),
        field("confidence", pa.float32(), "its probability, 0 to 1"),
        field("margin", pa.float32(), "by how much it is above the second one's"),
    ]
)

LEVEL = pa.schema(
    [
        field("id", pa.string(), "of the item, in panels"),
        _SUBFIELD,
        field("cluster", pa.int32(), "0 to 2; 0 is the largest of its subfield"),
        field("distance", pa.float32(), "to the cluster's centre"),
    ]
)

KEY = field("key", pa.string(), "digest of the id and of what the writer is told")
# What is known of a request goes along to its reply, so that the stages behind read one table.
ABOUT = (
    KEY,
    field("id", pa.string(), "item#task"),
    field("item", pa.string(), "in panels"),
    _PICTURE,
    field("task", pa.string(), "multiple_choice, description, complex_reasoning or multi_turn"),
    _SUBFIELD,
    field("level", pa.string(), "easy, medium or hard"),
    field("caption", pa.string(), "of the panel"),
    field("references", _TEXTS, "sentences of the book that refer to it"),
)
REPLY = (
    field("reply", pa.string(), "as it came"),
    field("finish", pa.string(), "stop; length = cut at the longest reply; refused: why"),
    field("tokens_in", pa.int64(), "of the prompt; 0 where the server does not say"),
    field("tokens_out", pa.int64(), "of the reply"),
)
REASON = pa.schema([*ABOUT, *REPLY])
REASON_REQUESTS = pa.schema([*ABOUT, field("prompt", pa.string(), "what the writer is told")])

_ROUND = pa.struct([("question", pa.string()), ("reasoning", pa.string()), ("answer", pa.string())])
QUALITY = pa.schema(
    [
        *ABOUT[1:-1],
        field("rounds", pa.list_(_ROUND), "one, or those of a conversation"),
        field("options", _TEXTS, "of a multiple-choice question, else none"),
    ]
)

FACTS_REQUESTS = pa.schema(
    [
        KEY,
        field("id", pa.string(), "of the item, in panels"),
        _PICTURE,
        _SUBFIELD,
        field("text", pa.string(), "caption and references"),
        field("prompt", pa.string(), "what the model is told"),
    ]
)
QUESTIONS = pa.schema(
    [
        field("id", pa.string(), "item#diagnosis"),
        field("item", pa.string(), "in panels"),
        _PICTURE,
        _SUBFIELD,
        field("system", pa.string(), "the tissue system, one of diagnoses.SYSTEMS"),
        field("question", pa.string(), "without its options"),
        field("answer", pa.string(), "a letter"),
        field("options", _TEXTS, "in the order of the letters"),
    ]
)

ASSEMBLE = pa.schema(
    [
        field("id", pa.string(), "of the sample"),
        field("item", pa.string(), "in panels"),
        field("set", pa.string(), "sft or rl"),
        field("split", pa.string(), "train or val"),
        field("task", pa.string(), "one of the four, or diagnosis"),
        _SUBFIELD,
        field("text", pa.string(), "by which it was compared with others"),
    ]
)
