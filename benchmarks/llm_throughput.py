"""Chunks a second that the LLM generator asks about, by requests in flight, at a server's given latency.

    python benchmarks/llm_throughput.py                                   # own server, 200 ms an answer
    python benchmarks/llm_throughput.py --base-url http://127.0.0.1:8090/v1 --documents FOLDER
    python benchmarks/llm_throughput.py --peer-python VENV/bin/python     # LlamaIndex on the same server, see the peer

Each answer is validated and committed to the warehouse of a store that is deleted afterwards. The own server is a process
of its own and does nothing but wait; both share the machine's cores with the client.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

from acme_rag_pipeline.pairs.answer_store import AnswerStore
from acme_rag_pipeline.pairs.generators import Generator
from acme_rag_pipeline.pairs.llm import Budget, LLMAnswer, LLMCall, LLMConnection, ask_all_blocking
from acme_rag_pipeline.pairs.passage import Passage
from acme_rag_pipeline.pairs.prompt import PromptParameters, render
from acme_rag_pipeline.store.layout import Store

WORDS = 180
PEER = Path(__file__).with_name("llm_throughput_peer.py")
PEER_CHUNKS = 60


class CountingStore:
    """A store of answers that counts what it commits."""

    def __init__(self, folder: Path) -> None:
        self.commits = self.queries = 0
        self._answers = AnswerStore(Store(folder), Generator("openai", ("benchmark",), {}, {}))

    def commit(self, calls: list[LLMCall], answers: list[LLMAnswer]) -> None:
        self._answers.commit(calls, answers)
        self.commits += 1
        self.queries += sum(len(answer.queries) for answer in answers)


def passages(folder: Path) -> list[Passage]:
    """Paragraphs of the folder's Markdown files, put together to about 180 words, as they stand in the file."""
    found: list[Passage] = []
    for path in sorted(folder.rglob("*.md")):
        name, text = path.relative_to(folder).as_posix(), path.read_text(encoding="utf-8")
        start = end = 0
        for paragraph in text.split("\n\n"):
            end += len(paragraph) + 2
            if len(text[start:end].split()) >= WORDS or end >= len(text):
                if text[start:end].strip():
                    found.append(Passage(f"{name}:{start}", name, path.stem, (), text[start:end]))
                start = end
    return found


def serve(latency: float) -> None:
    """An endpoint that gives every prompt the same three questions after `latency` seconds; prints its port."""
    queries = [
        {"query": f"question {n}?", "style": style} for n, style in enumerate(("question", "keywords", "situation"))
    ]
    message = {"role": "assistant", "content": json.dumps({"queries": queries})}
    body = json.dumps(
        {
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 600, "completion_tokens": 60},
        }
    ).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(latency)
            self.wfile.write(head + body)

    class Server(ThreadingHTTPServer):
        request_queue_size = 256
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=lambda: (sys.stdin.read(), server.shutdown()), daemon=True).start()
    print(server.server_address[1], flush=True)
    server.serve_forever()


def measure(url: str, chunks: list[Passage], in_flight: int, seconds: float) -> str:
    """A row of the table; few requests in flight are measured on as many chunks as fit into the time."""
    parameters = PromptParameters()
    most = max(20, int(seconds * in_flight * 4))
    prompts = {chunk.chunk_id: render(chunk, parameters) for chunk in chunks[:most]}
    with TemporaryDirectory() as folder:
        sink = CountingStore(Path(folder))
        sink.commit([], [])  # creates the warehouse
        sink.commits = 0
        cpu = time.process_time()
        outcome = ask_all_blocking(prompts, LLMConnection("m", url, "any", 30.0, in_flight), sink, Budget())
        cpu = time.process_time() - cpu
    if outcome.stopped or outcome.failed:
        raise SystemExit(outcome.sentence)
    return (
        f"| {in_flight} | {outcome.answered} | {outcome.calls} | {outcome.answered / outcome.seconds:.1f} "
        f"| {1000 * cpu / outcome.calls:.1f} | {sink.commits} | {sink.queries} |"
    )


def measure_peer(python: Path, url: str, chunks: list[Passage]) -> str:
    """A row of the table for LlamaIndex, which asks for one chunk after the other."""
    texts = json.dumps([chunk.text for chunk in chunks[:PEER_CHUNKS]])
    done = subprocess.run([python, PEER, url], input=texts, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    rate = float(done.stdout.splitlines()[-1])  # before it stand the log lines of its libraries
    return f"| LlamaIndex | {min(PEER_CHUNKS, len(chunks))} | | {rate:.1f} | | | |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", help="an OpenAI-compatible server; default: an own one")
    parser.add_argument("--documents", type=Path, default=Path("data/documents"), help="folder of Markdown files")
    parser.add_argument("--latency", type=float, default=0.2, help="seconds, of the own server")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=8.0, help="about how long each row may take")
    parser.add_argument("--peer-python", type=Path, help="interpreter of an environment that has LlamaIndex")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.latency)
        return
    chunks = passages(arguments.documents)
    if not chunks:
        raise SystemExit(f"no Markdown files in {arguments.documents}")
    # The first run pays for the imports.
    import openai  # noqa: F401

    server = None
    url = arguments.base_url
    if url is None:
        command = [sys.executable, __file__, "--serve", "--latency", str(arguments.latency)]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
    try:
        print("| in flight | chunks | calls | chunks/s | client CPU ms/call | commits | queries |")
        print("|--:|--:|--:|--:|--:|--:|--:|")
        for in_flight in arguments.in_flight:
            while len(chunks) < arguments.seconds * in_flight * 4 and arguments.base_url is None:
                # The own server does not look at the text: the same documents again are as good.
                chunks += [Passage(f"{c.chunk_id}+{len(chunks)}", c.doc_path, c.title, (), c.text) for c in chunks]
            print(measure(url, chunks, in_flight, arguments.seconds), flush=True)
        if arguments.peer_python is not None:
            print(measure_peer(arguments.peer_python, url, chunks), flush=True)
    finally:
        if server is not None:
            server.communicate()


if __name__ == "__main__":
    main()
