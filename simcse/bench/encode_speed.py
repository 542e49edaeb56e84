"""Sentences per second of `embed_sentences` against `SentenceTransformer.encode`, same model, same batch budget.

    python simcse/bench/encode_speed.py                                  # 5,000 distinct sentences, MiniLM
    python simcse/bench/encode_speed.py --count 500 --rounds 3 --profile

Both sides get the same distinct sentences (so that encoding a repeated one only once wins nothing) and give unit
vectors, cut at the same number of tokens. sentence-transformers runs with its default batch of 32 rows; ours once with
32 rows as well, and once as it comes, with its default of tokens per batch: on a CPU 1,024, which is about what 32 rows
hold. The runs alternate, so that a machine that slows down slows all of them, and medians are compared.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from shared import hub
from shared.bench import write_record
from shared.provenance import Watch
from simcse.embedding import embed_sentences, load_encoder
from simcse.index import read_sentences, unit_rows
from simcse.serve import corpus_summaries, evenly_spaced

ROOT = Path(__file__).resolve().parents[2]
BASELINE, BATCH_ROWS = "sentence-transformers, 32 rows", 32


def load_sentences(path: Path | None, count: int) -> tuple[list[str], str]:
    """Distinct sentences, spread over their source, and what the source is."""
    if path is None:
        try:
            path = hub.locate("simcse", "wiki_sample")
        except hub.NotAvailable:
            return evenly_spaced(corpus_summaries(), count), "summary lines of the offline corpus"
    return evenly_spaced(list(dict.fromkeys(read_sentences(path))), count), path.name


def contestants(model: str, device: str) -> dict[str, Callable[[list[str]], np.ndarray]]:
    """Name -> a function from sentences to unit vectors; the baseline first."""
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(hub.model_path(model, "simcse"), device=device)
    encoder, tokenizer = load_encoder(model, "avg", device)

    def ours(**budget: int) -> Callable[[list[str]], np.ndarray]:
        options = {"max_length": theirs.max_seq_length, **budget}
        return lambda sentences: unit_rows(embed_sentences(encoder, tokenizer, sentences, **options))

    return {
        BASELINE: lambda sentences: theirs.encode(sentences, batch_size=BATCH_ROWS, normalize_embeddings=True),
        "ours, 32 rows": ours(batch_rows=BATCH_ROWS, batch_tokens=BATCH_ROWS * theirs.max_seq_length),
        "ours, default batches": ours(),
    }


def measure(encoders: dict[str, Callable], sentences: list[str], rounds: int) -> tuple[dict, dict]:
    """Seconds of each round, and the vectors of the last, by name."""
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    vectors = {name: encode(sentences[: 2 * BATCH_ROWS]) for name, encode in encoders.items()}  # warm-up
    for _ in range(rounds):
        for name, encode in encoders.items():
            start = time.perf_counter()
            vectors[name] = encode(sentences)
            seconds[name].append(time.perf_counter() - start)
    return seconds, vectors


def profile_table(encode: Callable, sentences: list[str]) -> str:
    """Where the time goes, by torch operator, on one thread: the profiler sees no other."""
    torch.set_num_threads(1)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        encode(sentences)
    return profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm")
    parser.add_argument(
        "--sentences", type=Path, help="file, one per line; default: the mirror's sample, else the corpus"
    )
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--profile", action="store_true", help="print a table of operators for the baseline and ours")
    parser.add_argument("--out", type=Path, help="default: records/<date>-<device>-encode.json beside this script")
    options = parser.parse_args()
    watch = Watch(ROOT, config=vars(options))
    sentences, source = load_sentences(options.sentences, options.count)
    encoders = contestants(options.model, options.device)
    seconds, vectors = measure(encoders, sentences, options.rounds)

    console = Console()
    table = Table(
        "",
        "sentences/s",
        "times the baseline",
        "largest difference",
        title=f"{len(sentences)} distinct sentences ({source})",
    )
    rows = {}
    for name, taken in seconds.items():
        ratio = statistics.median(seconds[BASELINE]) / statistics.median(taken)
        rows[name] = {
            "seconds": taken,
            "sentences_per_second": len(sentences) / statistics.median(taken),
            "ratio": ratio,
            "ratio_of_each_round": [theirs / ours for theirs, ours in zip(seconds[BASELINE], taken, strict=True)],
            "largest_difference": float(np.abs(vectors[name] - vectors[BASELINE]).max()),
        }
        table.add_row(
            name, f"{rows[name]['sentences_per_second']:.1f}", f"{ratio:.2f}", f"{rows[name]['largest_difference']:.1e}"
        )
    console.print(table)
    if options.profile:
        for name in (BASELINE, "ours, default batches"):
            console.print(name, profile_table(encoders[name], sentences), sep="\n", soft_wrap=True)
    data = {"source": source, "distinct": len(sentences), "words": sum(len(s.split()) for s in sentences)}
    record = {
        "benchmark": "encode_speed",
        "data": data,
        "threads": torch.get_num_threads(),
        "results": rows,
        "provenance": watch.record(),
    }
    write_record(record, __file__, f"{options.device}-encode", options.out)


if __name__ == "__main__":
    main()
