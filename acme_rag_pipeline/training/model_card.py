"""The README and the manifest that travel with a model's weights."""

from __future__ import annotations

import json
from typing import Any


def model_card(about: dict[str, Any]) -> str:
    """A model card in the format of the hub, from the manifest."""
    sweep = "\n".join(
        f"| {row['share']:.2f} | {row['whitening']:g} | {row['ndcg@10']:.4f} |" for row in about["interpolation"]
    )
    choice = (
        f"Validation nDCG@10 by share of the tuned weights (0 is the base) and exponent of the whitening:\n\n| share | whitening | nDCG@10 |\n|---|---|---|\n{sweep}\n"
        if sweep
        else "Too few validation queries to choose by: the largest share of the tuned weights was taken.\n"
    )
    how = "as `Title > Heading` and the text" if about["passage_prefix"] == "heading_path" else "as they are"
    if about["passage_digest"]:
        how += f", by the base model `{about['passage_digest'][:16]}`: this one encodes queries only"
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
base_model: {json.dumps(about["base_model"])}
license: {json.dumps(about["licence"])}
tags: [sentence-transformers, feature-extraction, retrieval]
---

# {about["base_model"]}, fine-tuned for one document collection

Model digest `{about["model_digest"]}`.

| | |
|---|---|
| base | {about["base_model"]} (`{about["base_digest"][:16]}`), licence {about["licence"]} |
| training pairs | {about["pairs"]} over {about["passages"]} passages ({", ".join(f"{k}: {v}" for k, v in about["origins"].items())}) |
| training set | `{about["training_key"][:16]}` |
| recipe | {about["settings"]["strategy"]}, {about["trained"]}, {about["epochs_trained"]} epochs, batch {about["settings"]["batch_size"]}, learning rate {about["learning_rate"]:g}, guided in-batch softmax of scale {about["settings"]["scale"]:g}, {about["settings"]["distilled_share"]:.0%} of the loss distilled from the base and shared words |
| passages are encoded | {how} |
| share of the tuned weights | {about["share"]:.2f} |
| exponent of the soft whitening | {about["whitening"]:g} |

{choice}
```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
```

It knows one collection and is judged on it; on other texts expect the base model's quality at best. Whether it is
better than the base there is the evaluation report's business, not this card's.
"""


def manifest_text(about: dict[str, Any]) -> str:
    """The manifest as JSON."""
    return json.dumps(about, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
