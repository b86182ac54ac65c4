"""What a history of document commits costs: for each one, the texts encoded, the rows left stale, the seconds.

    python benchmarks/replay.py --history FOLDER [--commits 100] [--peers] [--out results.json]
    python benchmarks/replay.py --folder DOCUMENTS              # one-file edit against a build from nothing

`--history` is a folder with

- `base/`: the documents before the first commit;
- `history.jsonl.gz`: a line per commit, {"n": 1, "commit": "...", "date": "...", "subject": "...", "changes": [...]},
  the oldest first. A change is {"status", "path", "old_path", "text"}: A and M give the new text of `path`, D deletes
  it, R moves `old_path` to `path` with the given text.

From a git repository: `git worktree add base COMMIT` for the first part (without `.git`); for the second, for each
commit of `git rev-list --reverse --first-parent COMMIT..HEAD`, the output of `git diff-tree -r -M --no-commit-id
--name-status --root SHA` and `git show SHA:PATH` for each A, M and R.

Each commit is applied to a folder and followed by the stages of the job `refresh`, in this process, with the real
model; every 40th as a whole `dagster job execute -j refresh`. Then the served table is compared with a split of the
files that does not use the store, and at the end with a store that is built from nothing. `reader_grace_seconds` is 0:
commits that are days apart are replayed within seconds. `--peers` needs the extra `benchmarks`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from replay_oracle import Oracle, cached, served_rows, size_by_part, stale_and_missing, token_counter

from acme_rag_pipeline.chunking.chunks import split_documents
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.embedding.encoder import Encoder
from acme_rag_pipeline.retrieval.index import index_base, index_candidate
from acme_rag_pipeline.serving.serve import serve
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.stages import StageResult

PROJECT = Path(__file__).resolve().parent.parent
STAGES: dict[str, Callable[[Store, Settings], StageResult]] = {
    "documents": ingest_documents,
    "chunks": split_documents,
    "base_index": index_base,
    "fine_tuned_index": index_candidate,
    "served_index": serve,
}


class EncodeCount:
    """Counts the texts that really go through a model of this process."""

    def __init__(self) -> None:
        self.texts = 0
        encode = Encoder.encode_passages

        def counted(encoder: Encoder, rendered: Sequence[str]) -> np.ndarray:
            self.texts += len(rendered)
            return encode(encoder, rendered)

        Encoder.encode_passages = counted  # type: ignore[method-assign]


def refresh(store: Store, settings: Settings) -> dict[str, Any]:
    """The stages in this process: seconds of each, rows of `chunks` by what happened to them."""
    seconds: dict[str, float] = {}
    counts: dict[str, int] = {}
    for name, stage in STAGES.items():
        started = time.perf_counter()
        result = stage(store, settings)
        seconds[name] = round(time.perf_counter() - started, 4)
        if name == "chunks":
            counts = vars(result.counts)
    return {"seconds": round(sum(seconds.values()), 4), "stages": seconds, "chunks": counts}


def refresh_process(store: Store, settings: Settings, home: Path) -> float:
    """The seconds of a whole `dagster job execute -j refresh`."""
    environment = os.environ | {
        "DAGSTER_HOME": str(home),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "ACME_RAG_ROOT": str(home),
        "ACME_RAG_DOCUMENTS": str(settings.documents),
        "ACME_RAG_STORE": str(store.root),
        "ACME_RAG_SERVING__READER_GRACE_SECONDS": str(settings.serving.reader_grace_seconds),
    }
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        shutil.copyfile(PROJECT / "dagster.yaml", home / "dagster.yaml")
    command = [
        sys.executable,
        "-m",
        "dagster",
        "job",
        "execute",
        "-j",
        "refresh",
        "-m",
        "acme_rag_pipeline.definitions",
    ]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"refresh failed:\n{done.stderr[-3000:]}")
    return round(seconds, 2)


def apply(folder: Path, changes: list[dict[str, Any]]) -> set[str]:
    """Write a commit's changes to the folder. Returns the paths touched."""
    touched = set()
    for change in changes:
        gone = {"D": change["path"], "R": change.get("old_path")}.get(change["status"])
        if gone:
            (folder / gone).unlink()
            touched.add(gone)
        if change["status"] != "D":
            target = folder / change["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(change["text"].encode("utf-8", "surrogatepass"))
            touched.add(change["path"])
    return touched


def replay(arguments: argparse.Namespace, work: Path, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Apply every commit, saving what is known every 20. Returns a record per commit and the totals."""
    documents = work / "documents"
    shutil.copytree(arguments.history / "base", documents, copy_function=shutil.copyfile)
    store, settings = opened(documents, arguments.store or work / "store")
    with gzip.open(arguments.history / "history.jsonl.gz", "rt", encoding="utf-8") as lines:
        commits = [json.loads(line) for line in lines][: arguments.commits]
    oracle = Oracle(token_counter(settings), settings.chunking.max_tokens)
    oracle.follow(documents, [p.relative_to(documents).as_posix() for p in documents.rglob("*") if p.is_file()])
    others: list[Any] = []
    if arguments.peers:
        from replay_peers import peers

        others = peers(token_counter(settings).count, settings.chunking.max_tokens, work)
    encoded = EncodeCount()
    rows: list[dict[str, Any]] = []
    for commit in [{"n": 0, "changes": []}, *commits]:
        inputs = len(oracle.inputs) if commit["n"] else 0
        touched = apply(documents, commit["changes"])
        oracle.follow(documents, touched)
        before, through_model = cached(store), encoded.texts
        row: dict[str, Any] = {"n": commit["n"], "files": len(touched)}
        if commit["n"] and arguments.process_every and commit["n"] % arguments.process_every == 0:
            row["process_seconds"] = refresh_process(store, settings, work / "dagster")
            row["encoded"] = cached(store) - before
        else:
            row |= refresh(store, settings)
            row["encoded"] = encoded.texts - through_model
        row["stale"], row["missing"] = stale_and_missing(store, oracle)
        row["rows"] = oracle.passages().total()
        row["new_inputs"] = len(oracle.inputs) - inputs
        for peer in others:
            known = peer.embedded()
            seconds = peer.update(oracle.texts)
            stale, missing = peer.stale(oracle.texts)
            row[peer.name] = {
                "encoded": peer.embedded() - known,
                "stale": stale,
                "missing": missing,
                "seconds": round(seconds, 4),
            }
        rows.append(row)
        results = {
            "commits": rows,
            "encoded": sum(row["encoded"] for row in rows),
            "distinct_inputs": len(oracle.inputs),
            "systems": [peer.name for peer in others],
        }
        if commit["n"] % 20 == 0:
            print(f"commit {commit['n']}: {row['encoded']} encoded, {row['stale']} stale", file=sys.stderr, flush=True)
            save(results)
    results["vectors_in_cache"] = cached(store)
    save(results)
    return results | {"fresh": compare_with_fresh(store, documents, work)}


def compare_with_fresh(store: Store, documents: Path, work: Path) -> dict[str, Any]:
    """Build the same documents from nothing, and compare rows, vectors and bytes on disk."""
    fresh, settings = opened(documents, work / "fresh")
    built = refresh(fresh, settings)
    held, wanted = ({row["id"]: row for row in served_rows(one)} for one in (store, fresh))
    same = [i for i in wanted if i in held]
    cosines = [float(np.dot(held[i].pop("vector"), wanted[i].pop("vector"))) for i in same]
    chunks = []
    for one in (store, fresh):
        with one.warehouse.read() as connection:
            chunks.append(connection.execute("SELECT * FROM chunks ORDER BY chunk_id").fetchall())
    sizes = {one.root.name: size_by_part(one.root) for one in (store, fresh)}
    replayed_bytes, fresh_bytes = (sum(parts.values()) for parts in sizes.values())
    return {
        "rows": len(wanted),
        "rows_equal": held == wanted,
        "chunks_equal": chunks[0] == chunks[1],
        "lowest_cosine": min(cosines, default=1.0),
        "bytes": sizes,
        "ratio": round(replayed_bytes / fresh_bytes, 3),
        "seconds_from_nothing": built["seconds"],
    }


def one_file_edit(folder: Path, work: Path, times: int) -> dict[str, Any]:
    """Whole processes: `refresh` into an empty store, then after edits of one file, then with nothing to do.

    Elapsed seconds and processor seconds: where other programs run too, compare the latter.
    """
    documents = work / "edited"
    shutil.copytree(folder, documents, copy_function=shutil.copyfile)
    store, settings = opened(documents, work / "edited-store")
    load = os.getloadavg()[0]

    def measured() -> dict[str, float]:
        before = processor_seconds()
        seconds = refresh_process(store, settings, work / "dagster")
        return {"seconds": seconds, "processor": round(processor_seconds() - before, 2)}

    nothing = measured()
    files = sorted(path for path in documents.rglob("*") if path.is_file() and path.stat().st_size > 2000)
    edits, encoded = [], []
    for number in range(times):
        path = files[(number * 2 + 1) * len(files) // (2 * times)]
        text = path.read_bytes().decode()
        middle = text.find("\n\n", len(text) // 2)
        path.write_bytes((text[:middle] + f"\n\nThis paragraph is new, number {number}." + text[middle:]).encode())
        before = cached(store)
        edits.append(measured())
        encoded.append(cached(store) - before)
    return {
        "files": sum(path.is_file() for path in documents.rglob("*")),
        "chunks": len(served_rows(store)),
        "load_before": load,
        "from_nothing": nothing,
        "edits": edits,
        "edits_encoded": encoded,
        "share": {kind: round(statistics.median(edit[kind] for edit in edits) / nothing[kind], 4) for kind in nothing},
        "nothing_to_do": [measured() for _ in range(times)],
        "load_after": os.getloadavg()[0],
    }


def processor_seconds() -> float:
    """What the processes that this one started and waited for have used, all threads together."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def opened(documents: Path, store: Path) -> tuple[Store, Settings]:
    """A store and settings that no environment of the caller changes."""
    settings = Settings.load(
        root=store.parent, documents=documents, store=store, golden="none", serving={"reader_grace_seconds": 0}
    )
    return Store(settings.store, settings.lock_seconds), settings


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    rows = [row for row in results["commits"] if row["n"]]
    lines = [
        "| system | texts embedded, first build | over the commits | median a commit | 95th percentile | commits with "
        "stale rows | stale rows at the end | median seconds |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    ours = ("this project, `refresh`", lambda row: row)
    for name, of in (ours, *((system, lambda row, s=system: row[s]) for system in results["systems"])):
        encoded = [of(row)["encoded"] for row in rows]
        seconds = [of(row)["seconds"] for row in rows if "seconds" in of(row)]
        lines.append(
            f"| {name} | {of(results['commits'][0])['encoded']:,} | {sum(encoded):,} | {statistics.median(encoded):g} "
            f"| {np.percentile(encoded, 95):.0f} | {sum(of(row)['stale'] > 0 for row in rows)} | {of(rows[-1])['stale']} "
            f"| {statistics.median(seconds):.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--history", type=Path, help="folder with base/ and history.jsonl.gz")
    parser.add_argument("--folder", type=Path, help="folder of documents for the one-file edit")
    parser.add_argument("--commits", type=int, help="only the first N")
    parser.add_argument("--store", type=Path, help="where the replayed store goes; default a temporary folder")
    parser.add_argument("--out", type=Path, help="every number as JSON")
    parser.add_argument("--peers", action="store_true", help="LlamaIndex and LangChain on the same commits")
    parser.add_argument("--process-every", type=int, default=40, help="refresh as a whole process; 0: never")
    parser.add_argument("--edits", type=int, default=3, help="of --folder")
    arguments = parser.parse_args()
    if arguments.history is None and arguments.folder is None:
        parser.error("give --history, --folder or both")
    if arguments.store is not None and arguments.store.exists():
        parser.error(f"--store {arguments.store} exists; name a new folder")
    for name in [name for name in os.environ if name.startswith(("ACME_RAG_", "OPENAI_"))]:
        del os.environ[name]

    def save(found: dict[str, Any]) -> None:
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(results | found, indent=1) + "\n", encoding="utf-8")

    results: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    with tempfile.TemporaryDirectory(prefix="replay-") as work:
        if arguments.folder is not None:
            results["one_file_edit"] = one_file_edit(arguments.folder, Path(work), arguments.edits)
            print(json.dumps(results["one_file_edit"], indent=1), flush=True)
        if arguments.history is not None:
            results |= replay(arguments, Path(work), save)
            print(table(results))
            summary = {key: value for key, value in results.items() if key not in ("commits", "one_file_edit")}
            processes = [row["process_seconds"] for row in results["commits"] if "process_seconds" in row]
            print(json.dumps(summary | {"process_seconds": processes}, indent=1))
    save({})
    wrong = [row["n"] for row in results.get("commits", []) if row["stale"] or row["missing"]]
    fresh = results.get("fresh", {"rows_equal": True, "chunks_equal": True, "lowest_cosine": 1.0})
    same = fresh["rows_equal"] and fresh["chunks_equal"] and fresh["lowest_cosine"] >= 0.9999
    if wrong or not same or results.get("encoded") != results.get("distinct_inputs"):
        raise SystemExit(f"the law does not hold: stale or missing rows after commits {wrong[:20]}, see above")


if __name__ == "__main__":
    main()
