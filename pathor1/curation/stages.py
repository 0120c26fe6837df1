"""The stages of curation in order, by name. Standard library alone: the command line lists them."""

from __future__ import annotations

# Name -> the module and class that do it, and what it makes.
STAGES: dict[str, tuple[str, str]] = {
    "pages": ("pathor1.curation.pages:Pages", "PDF -> page pictures, and the words of their text layer"),
    "layout": ("pathor1.curation.layout:Layout", "pages -> text blocks, figures and captions"),
    "captions": ("pathor1.curation.captions:Captions", "figures and captions, matched one to one"),
    "panels": ("pathor1.curation.panels:Panels", "composite figures -> panels, each with its part of the caption"),
    "references": ("pathor1.curation.references:References", "sentences of the body text that refer to a figure"),
    "subfield": (
        "pathor1.curation.subfield:SubfieldStage",
        "panels -> subfields, by a classifier that people correct",
    ),
    "level": ("pathor1.curation.level:LevelStage", "panels -> three clusters in each subfield, which a person names"),
    "reason": (
        "pathor1.curation.reason:ReasonStage",
        "captions -> samples that a language model writes of them",
    ),
    "quality": ("pathor1.curation.filter_replies:QualityStage", "replies -> drafts of samples, by rules with reasons"),
    "questions": ("pathor1.curation.questions:QuestionsStage", "reserved panels -> questions on diagnoses, for RL"),
    "assemble": ("pathor1.curation.assemble:AssembleStage", "drafts and questions -> files of samples for sft and rl"),
}
