"""The embedded base model cut to its lowest layers: real weights, tokenizer and format at a third of the cost.

For tests of how training and serving go about their work. Whatever asserts how good vectors are uses the whole model.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from pathlib import Path

from acme_rag_pipeline.embedding.base_model import resolve_base_model
from acme_rag_pipeline.settings import EMBEDDED_BASE_MODEL

LAYERS = 2
# Asked for here: a process on a full disk finds none.
TEMPORARY = Path(tempfile.gettempdir())


@functools.cache
def shallow_base() -> Path:
    """A sentence-transformers directory, made once on a machine: every process finds it under the same path."""
    from safetensors.torch import load_file, save_file

    whole = resolve_base_model(EMBEDDED_BASE_MODEL, Path())
    # Files of an old temporary folder may have been taken away one by one.
    names = [str(path.relative_to(whole.folder)) for path in whole.folder.rglob("*") if path.is_file()]
    user = os.getuid() if hasattr(os, "getuid") else "user"
    folder = TEMPORARY / f"acme-rag-tests-{user}" / f"MiniLM-L{LAYERS}-{whole.digest[:16]}"

    def is_whole() -> bool:
        return all((folder / name).is_file() for name in names)

    if is_whole():
        return folder
    folder.parent.mkdir(exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent)) / folder.name
    shutil.copytree(whole.folder, made)
    config = json.loads((made / "config.json").read_bytes())
    (made / "config.json").write_text(json.dumps(config | {"num_hidden_layers": LAYERS}), encoding="utf-8")
    weights = load_file(made / "model.safetensors")
    above = tuple(f"encoder.layer.{number}." for number in range(LAYERS, config["num_hidden_layers"]))
    kept = {name: weight for name, weight in weights.items() if not name.startswith(above)}
    assert len(kept) < len(weights)
    save_file(kept, made / "model.safetensors", metadata={"format": "pt"})
    try:
        made.rename(folder)
    except OSError:
        # Another process was faster, or files of it were taken away.
        if not is_whole():
            shutil.rmtree(folder)
            made.rename(folder)
    shutil.rmtree(made.parent)
    return folder
