"""The README and the manifest that travel with a model's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from acme_rag_pipeline.embedding.base_model import BASE_CARD, NOT_STATED, base_card

# Between them the evaluation writes what it found.
EVALUATION_BEGINS, EVALUATION_ENDS = "<!-- evaluation -->", "<!-- end of evaluation -->"


def model_files(about: dict[str, Any], base: Path) -> dict[str, str]:
    """The manifest, the card, and the card of the base that the model was tuned from, by file name."""
    own = base_card(base)
    manifest = json.dumps(about, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    return {"manifest.json": manifest, "README.md": model_card(about, with_base_card=bool(own))} | own


def model_card(about: dict[str, Any], with_base_card: bool = False) -> str:
    """A model card in the format of the hub, from the manifest.

    Args:
        about: the manifest.
        with_base_card: the base's own card lies beside it.
    """
    # The hub knows no name for a licence that nobody stated.
    licence = "" if about["licence"] == NOT_STATED else f"license: {json.dumps(about['licence'].split(' (')[0])}\n"
    beside = f", its own card: [{BASE_CARD}]({BASE_CARD})" if with_base_card else ""
    unlike = any("unlike_training" in row for row in about["interpolation"])
    sweep = "\n".join(
        f"| {row['share']:.2f} | {row['whitening']:g} | {row['ndcg@10']:.4f} |"
        + (f" {row['unlike_training']:.4f} |" if "unlike_training" in row else " |" if unlike else "")
        for row in about["interpolation"]
    )
    of_unlike = (" by people's questions and headings, which chose the share |", "---|") if unlike else ("", "")
    choice = (
        f"Validation nDCG@10 by share of the tuned weights (0 is the base) and exponent of the whitening:\n\n| share | whitening | nDCG@10 |{of_unlike[0]}\n|---|---|---|{of_unlike[1]}\n{sweep}\n"
        if sweep
        else "Too few validation queries to choose a share of the tuned weights by.\n"
    )
    drawn = (
        ""
        if (found := about.get("drawn_to_queries")) is None
        else f"\n| drawn to the queries of its passages | {_drawn(found)} |"
    )
    how = "as `Title > Heading` and the text" if about["passage_prefix"] == "heading_path" else "as they are"
    if about["passage_digest"]:
        how += f", by the base model `{about['passage_digest'][:16]}`: this one encodes queries only"
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
base_model: {json.dumps(about["base_model"])}
{licence}tags: [sentence-transformers, feature-extraction, retrieval]
---

# {about["base_model"]}, fine-tuned for one document collection

Model digest `{about["model_digest"]}`.

| | |
|---|---|
| base | {about["base_model"]} (`{about["base_digest"][:16]}`), licence: {about["licence"].replace("|", "/")}{beside} |
| training pairs | {about["pairs"]} over {about["passages"]} passages ({", ".join(f"{k}: {v}" for k, v in about["origins"].items())}) |
| training set | `{about["training_key"][:16]}` |
| recipe | {about["settings"]["strategy"]}, {about["trained"]}, {about["epochs_trained"]} epochs, batch {about["settings"]["batch_size"]}, {about["hard_negatives"]} mined negatives a passage, learning rate {about["learning_rate"]:g}, guided in-batch softmax of scale {about["settings"]["scale"]:g}, {about["settings"]["distilled_share"]:.0%} of the loss distilled from the base and shared words |
| passages are encoded | {how} |
| share of the tuned weights | {about["share"]:.2f} |
| exponent of the soft whitening | {about["whitening"]:g} |{drawn}

{choice}
```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
```

It knows one collection and is judged on it; on other texts expect the base model's quality at best.

## Evaluation

{EVALUATION_BEGINS}
Not evaluated yet.
{EVALUATION_ENDS}
"""


def _drawn(found: dict[str, Any]) -> str:
    said = "yes" if found["kept"] else "no, its loss was no number any more" if found.get("broke_down") else "no"
    if "validation_after" in found:
        said += f"; validation nDCG@10 {found['validation_after']:.4f}, before {found['validation_before']:.4f}"
    if "after" in found:
        said += f"; by people's questions and headings {found['after']:.4f}, before {found['before']:.4f}"
    return said
