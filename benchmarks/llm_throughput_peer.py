"""Chunks a second of LlamaIndex's `generate_qa_embedding_pairs`; started by `llm_throughput.py --peer-python`.

Runs in an environment of its own with `llama-index-finetuning`, `llama-index-llms-openai-like` and `mistralai<2`
(which the first imports). Reads a JSON list of texts from standard input; prints the number.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")


def main(url: str, texts: list[str]) -> None:
    from llama_index.core.schema import TextNode
    from llama_index.finetuning import generate_qa_embedding_pairs
    from llama_index.llms.openai_like import OpenAILike

    llm = OpenAILike(model="m", api_base=url, api_key="any", is_chat_model=True, context_window=16000)
    llm.complete("warm up")
    nodes = [TextNode(id_=str(number), text=text) for number, text in enumerate(texts)]
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        made = generate_qa_embedding_pairs(
            nodes, llm, num_questions_per_chunk=3, output_path=str(Path(folder) / "pairs.json"), verbose=False
        )
        seconds = time.perf_counter() - begun
    if len(made.corpus) != len(texts):
        raise SystemExit(f"{len(made.corpus)} of {len(texts)} chunks were answered")
    print(len(texts) / seconds)


if __name__ == "__main__":
    main(sys.argv[1], json.load(sys.stdin))
