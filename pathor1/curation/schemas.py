"""The rows of every stage: one Arrow schema each, and the parts that they share.

Boxes are left, top, right, bottom in pixels of the page picture, whose size and dpi are in its row of `pages`. Pages
are counted from 1. `tool` says by what, and by which version, a row was made.
"""

from __future__ import annotations

import pyarrow as pa


def _field(name: str, type_: pa.DataType, doc: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, type_, nullable=nullable, metadata={"doc": doc})


BOX = pa.list_(pa.float32(), 4)
WORD = pa.struct([("text", pa.string()), ("box", BOX), ("size", pa.float32())])  # size: of the font, in points

_BOOK = [
    _field("id", pa.string(), "unique and stable: book/page, book/page/figure ..."),
    _field("book", pa.string(), "the file's name and the beginning of its SHA-256"),
    _field("page", pa.int32(), "from 1; where it begins"),
]
_TOOL = _field("tool", pa.string(), "what made this row, with its version")

PAGES = pa.schema(
    [
        *_BOOK,
        _field("book_sha256", pa.string(), "of the PDF"),
        _field("source", pa.string(), "the PDF's file name"),
        _field("license", pa.string(), "as the recipe says", nullable=True),
        _field("width_pt", pa.float32(), "the page as it is shown, in points of 1/72 inch"),
        _field("height_pt", pa.float32(), "the same"),
        _field("rotation", pa.int32(), "degrees clockwise by which the PDF turns the page; the picture is upright"),
        _field("dpi", pa.float32(), "of the picture"),
        _field("width", pa.int32(), "of the picture, in pixels"),
        _field("height", pa.int32(), "of the picture, in pixels"),
        _field(
            "kind", pa.string(), "born_digital, scanned (a picture fills it, with or without hidden text), or blank"
        ),
        _field("words", pa.list_(WORD), "of the text layer, in its order"),
        _field("pictures", pa.list_(BOX), "where the PDF has picture objects"),
        _field("image", pa.binary(), "the page, encoded"),
        _field("image_sha256", pa.string(), "of image"),
        _TOOL,
    ]
)

LAYOUT = pa.schema(
    [
        *_BOOK,
        _field("kind", pa.string(), "text, title, caption, figure, or other (headers, footers, page numbers)"),
        _field("box", BOX, "in the page picture"),
        _field("order", pa.int32(), "place in the reading order of the page, from 0"),
        _field("score", pa.float32(), "of a model, 0 to 1; 1 where rules have found it"),
        _field("text", pa.string(), "of the region; '' for a figure"),
        _field("lines", pa.list_(WORD), "its lines; of a figure what is written in it, such as panel labels"),
        _field("text_from", pa.string(), "pdf, or the OCR's name and version"),
        _TOOL,
    ]
)

CAPTIONS = pa.schema(
    [
        *_BOOK,
        _field("status", pa.string(), "matched, figure_without_caption, or caption_without_figure"),
        _field("number", pa.string(), "as the caption has it: '3-2', '12.4'; '' where it has none"),
        _field("caption", pa.string(), "whole, with its label; '' where there is none"),
        _field("caption_page", pa.int32(), "where it begins", nullable=True),
        _field("caption_boxes", pa.list_(pa.struct([("page", pa.int32()), ("box", BOX)])), "one a block and page"),
        _field("side", pa.string(), "below, above, beside, next_page, previous_page; '' where not matched"),
        _field("cost", pa.float32(), "of the match, 0 = as near as can be", nullable=True),
        _field("text_from", pa.string(), "pdf, or the OCR's name and version; '' without a caption"),
        _field("box", BOX, "of the figure in the page picture; of the caption where there is no figure"),
        _field("lines", pa.list_(WORD), "what is written in the figure, in the page picture's pixels"),
        _field("license", pa.string(), "as the recipe says", nullable=True),
        _field("image", pa.binary(), "the figure, PNG; null where there is none", nullable=True),
        _field("image_sha256", pa.string(), "of its pixels", nullable=True),
        _TOOL,
    ]
)

PANELS = pa.schema(
    [
        *_BOOK,
        _field("figure", pa.string(), "id of its row in captions"),
        _field("number", pa.string(), "of the figure"),
        _field("panel", pa.string(), "A, B, ... as it is labelled; '' where the figure is one panel or has no label"),
        _field("box", BOX, "in the page picture"),
        _field("caption", pa.string(), "the figure's, whole"),
        _field("panel_caption", pa.string(), "what it says of this panel, behind what it says of all"),
        _field("label_from", pa.string(), "text, ocr, order, model, or '' without a label"),
        _field("review", pa.string(), "why a person should look; '' = nothing to see"),
        _field("license", pa.string(), "as the recipe says", nullable=True),
        _field("image", pa.binary(), "the panel, PNG"),
        _field("image_sha256", pa.string(), "of its pixels"),
        _TOOL,
    ]
)

REFERENCES = pa.schema(
    [
        *_BOOK,
        _field("figure", pa.string(), "id of its row in captions"),
        _field("number", pa.string(), "of the figure"),
        _field("panels", pa.list_(pa.string()), "the panels that are named; none = the figure"),
        _field("mention", pa.string(), "as it stands in the text: 'Figs. 3-1 to 3-3'; '' where a model has found it"),
        _field("sentence", pa.string(), "the sentence around it"),
        _field("start", pa.int32(), "of the sentence in the body text of `page`, in characters"),
        _field("end_page", pa.int32(), "where the sentence ends"),
        _field("end", pa.int32(), "behind its last character in the body text of end_page"),
        _TOOL,
    ]
)
