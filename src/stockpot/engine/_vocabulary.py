"""Inputs in one vocabulary, where a recipe speaks of tokenizers or chat templates."""

from __future__ import annotations

from dataclasses import replace

from stockpot import errors
from stockpot.engine._align import Alignment, Decision, Inputs, renamed
from stockpot.engine._job import Job


def in_one_vocabulary(job: Job, inputs: Inputs) -> Inputs:
    """The inputs by the output's rows of tokens; as they are where the recipe says nothing of it."""
    recipe = job.recipe
    if recipe.output_tokenizer is None and recipe.chat_template is None:
        return inputs
    from stockpot.vocabulary import unify  # who merges models of one vocabulary does not wait for it

    if inputs.adapters is not None:
        raise errors.UsageError(
            "adapters are merged by themselves, and have no tokenizer", got="tokenizer or chat_template",
            remedy="leave it out, or merge BASE+ADAPTER",
        )  # fmt: skip
    shown, found = unify(recipe, inputs.checkpoints, renamed(job, inputs), has_base=inputs.has_base)
    return replace(inputs, checkpoints=shown, vocabulary=found)


def with_rows_told(inputs: Inputs, alignment: Alignment) -> Alignment:
    """The alignment with what became of the tensors that have rows of tokens."""
    if inputs.vocabulary is None:
        return alignment
    told = inputs.vocabulary.changed
    found = [Decision(slot.name, "vocabulary", told[slot.name]) for slot in alignment.slots if slot.name in told]
    number = alignment.template
    lost = [note for part in inputs.checkpoints[number].parts for note in inputs.vocabulary.lost(number, part.config)]
    return replace(
        alignment,
        decisions=(*alignment.decisions, *found),
        notes=(*alignment.notes, *dict.fromkeys((*inputs.vocabulary.notes, *lost))),
    )


def without_tokenizer(inputs: Inputs) -> list[str]:
    """Said of an output that is one file."""
    told = "one file has no tokenizer, chat template or configuration beside it: name a folder as --out to have them"
    return [told] if inputs.vocabulary is not None else []
