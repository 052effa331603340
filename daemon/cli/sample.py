"""`heirloom show FILE --sample N`: one example as the active model will see it, in its template and its tokens.

Read here, in the command's own process; the daemon parses nothing. Not here: the rest of `show` (`versions.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from daemon.cli.output import plural, visible
from guard.errors import NotFound
from guard.store.keeper import Keeper

__all__ = ["sample_lines", "sample_of"]

_CONTROL, _TRAINED = "cyan", "green"


def sample_of(keeper: Keeper, file: Any, number: int) -> dict[str, Any]:
    """{"sample": [{text, control, trained}], "sample_about": {...}} of the `number`-th usable example, from 1.

    Raises NotFound for a file that is not learnt or has fewer examples, Inexpressible where the template has no words.
    """
    from guard.checks.columns import Reading
    from guard.checks.kinds import stage_of
    from guard.checks.rows import iter_examples
    from guard.store.files import stored_path
    from guard.trained import trained_fields

    stage = stage_of(file.kind)
    if stage not in ("sft", "pretrain"):
        kind = "a document" if file.kind == "docs" else file.kind
        raise NotFound(f"{visible(file.name)} is {kind}: nothing of it is trained", subject=file.sha256,
                       hint="heirloom search finds what stands in documents")  # fmt: skip
    examples = iter_examples(stored_path(keeper.home, file), file.kind, Reading(**file.record.get("reading") or {}))
    example = next(itertools.islice(examples, max(0, number - 1), None), None)
    if example is None:
        raise NotFound(f"{visible(file.name)} has no example {number}: it has {file.examples:,}", subject=file.sha256,
                       hint=f"heirloom show {visible(file.name)} --sample {max(1, file.examples)}")  # fmt: skip
    about = {"number": number, "examples": file.examples, "line": example.line_number, **_model(keeper)}
    folder = about.pop("folder")
    return _seen(trained_fields(example.fields), stage, folder, about)


def _model(keeper: Keeper) -> dict[str, Any]:
    """The active version, whose template and tokenizer count; without one it is mypt, and nothing is counted."""
    from guard.store.versions import DEFAULT_LINE, line_tip, tips

    tip = line_tip(keeper.ledger, DEFAULT_LINE) or next(iter(tips(keeper.ledger).values()), None)
    known = tip is not None and bool(tip.record.get("tokenization"))
    if tip is None or not known:
        return {"version": tip.name if tip else None, "folder": None, "tokenization": None, "block_size": None}
    return {"version": tip.name, "folder": keeper.home.models / tip.name, "tokenization": tip.record["tokenization"],
            "block_size": tip.record.get("block_size")}  # fmt: skip


def _seen(fields: Mapping[str, Any], kind: str, folder: Path | None, about: dict[str, Any]) -> dict[str, Any]:
    from trainer.template import encode_parts
    from trainer.templates.base import Part
    from trainer.templates.find import load_template
    from trainer.tokenizer import load_tokenizer

    template, tokenizer = load_template(folder), None
    if folder is not None:
        tokenizer = load_tokenizer(str(about["tokenization"]), folder)
    about |= {"template": template.name if kind == "sft" else None, "tokens": None, "trained_tokens": None, "cut_tokens": 0}
    if "input_ids" in fields:
        ids = [int(item) for item in str(fields["input_ids"]).split(" ")]
        if tokenizer is not None and max(ids) < tokenizer.vocab_size:
            about |= {"tokens": len(ids), "trained_tokens": len(ids)}
            fields = {"text": tokenizer.decode(ids)}
    parts = template.parts(fields) if kind == "sft" else [Part(str(fields.get("text", fields.get("input_ids"))), trained=True)]
    if tokenizer is not None and about["tokens"] is None and "input_ids" not in fields:
        encoded = encode_parts([parts], tokenizer)[0]
        about |= {"tokens": len(encoded.ids), "trained_tokens": int(encoded.mask.sum())}
        room = int(about["block_size"] or 0) + 1
        over = len(encoded.ids) - room if kind == "sft" and room > 1 else 0
        about |= {"cut_tokens": max(0, min(over, encoded.cut_length)), "too_long": over > encoded.cut_length}
    told = [{"text": part.text, "control": part.control is not None, "trained": part.trained,
             **({"cuttable": True} if part.cuttable else {})} for part in parts]  # fmt: skip
    return {"sample": told, "sample_about": about}


def sample_lines(parts: Sequence[Mapping[str, Any]], about: Mapping[str, Any], style: Callable[..., str]) -> list[str]:
    """The example with what is trained between ⟦ and ⟧ (and in colours where those are wanted), then what it costs."""
    pieces = []
    for trained, run in itertools.groupby(parts, key=lambda part: part["trained"]):
        text = "".join(_coloured(part, style) for part in run)
        pieces.append(f"{style('⟦', _TRAINED)}{text}{style('⟧', _TRAINED)}" if trained else text)
    lines = [*"".join(pieces).split("\n"), "", "(trained: ⟦...⟧; everything else is only read)"]
    words = [f"example {about['number']:,} of {about['examples']:,}"]
    if about["template"]:
        words.append(f"template {about['template']}")
    if about["tokens"] is not None:
        words.append(f"{plural(about['tokens'], 'token')}, {about['trained_tokens']:,} trained")
        words.append(f"as {visible(about['version'])} sees it")
    lines.append(f"({'; '.join(words)})")
    if about["cut_tokens"]:
        lines.append(f"({about['cut_tokens']:,} tokens of its context are cut to fit {about['block_size']:,})")
    if about.get("too_long"):
        lines.append(f"(too long for the block of {about['block_size']:,}, even without its context: it is not trained)")
    return lines


def _coloured(part: Mapping[str, Any], style: Callable[..., str]) -> str:
    text = "\n".join(visible(line) for line in part["text"].split("\n"))
    return style(text, _CONTROL) if part["control"] else style(text, _TRAINED) if part["trained"] else text
