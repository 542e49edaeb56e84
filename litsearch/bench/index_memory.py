"""Peak memory and time of building a BM25 index of long documents, streamed from a generator to disk.

    python litsearch/bench/index_memory.py                       # 64,000 documents of 6,000 words
    python litsearch/bench/index_memory.py --documents 4000      # to see that memory does not follow the number
    python litsearch/bench/index_memory.py --quick

The paper's full texts are as many and as long. Words are drawn from Zipf's law over a vocabulary of 500,000. The build
runs in a process of its own, whose peak resident memory (workers are counted apart) is what the kernel says it was.
Resident memory counts mapped pages of the finished index as well; anonymous memory alone is less.
"""

import argparse
import concurrent.futures
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from litsearch.bm25 import BM25
from litsearch.generated_texts import zipf_texts
from shared.bench import write_record
from shared.provenance import Watch

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = 20


def build(documents: int, words: int, vocabulary: int, seed: int, processes: int, scratch: str | None) -> dict:
    """Build the index, open it, search it."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        started = time.perf_counter()
        texts = zipf_texts(documents, words, vocabulary, seed)
        bm25 = BM25(texts, folder=Path(folder) / "index", processes=processes)
        built = time.perf_counter() - started
        size = sum(file.stat().st_size for file in (Path(folder) / "index").iterdir())
        questions = [" ".join(text.split()[:12]) for text in zipf_texts(QUESTIONS, 12, vocabulary, seed + 1)]
        started = time.perf_counter()
        bm25.search(questions, 20)
        searched = (time.perf_counter() - started) / QUESTIONS
        return {
            "build_seconds": built,
            "index_bytes": size,
            "postings": len(bm25.documents),
            "terms": len(bm25.idf),
            "seconds_per_question": searched,
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "peak_bytes_of_a_worker": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=64_000)
    parser.add_argument("--words", type=int, default=6000)
    parser.add_argument("--vocabulary", type=int, default=500_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", help="folder for the index (1.7 GB) and what is merged into it (1.7 GB)")
    parser.add_argument("--quick", action="store_true", help="1,000 documents")
    parser.add_argument("--out", type=Path, help="default: records/<date>-cpu-index-memory.json beside this script")
    options = parser.parse_args()
    documents = 1000 if options.quick else options.documents
    watch = Watch(ROOT, config=vars(options), seed=options.seed)
    arguments = (options.words, options.vocabulary, options.seed, options.processes, options.scratch)
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        result = pool.submit(build, documents, *arguments).result()
    table = Table("documents", "words", "peak GB", "worker", "build s", "index GB", "postings", "ms/query")
    gigabytes = {key: f"{result[key] / 1e9:.2f}" for key in ("peak_bytes", "peak_bytes_of_a_worker", "index_bytes")}
    table.add_row(
        f"{documents:,}",
        f"{options.words:,}",
        gigabytes["peak_bytes"],
        gigabytes["peak_bytes_of_a_worker"],
        f"{result['build_seconds']:.0f}",
        gigabytes["index_bytes"],
        f"{result['postings']:,}",
        f"{1000 * result['seconds_per_question']:.1f}",
    )
    Console().print(table)
    record = {"benchmark": "index_memory", "documents": documents, "words": options.words, "results": result}
    record["provenance"] = watch.record()
    write_record(record, __file__, "cpu-index-memory", options.out)


if __name__ == "__main__":
    main()
