"""Wall time of the template search with a tiny T5: cached states, and encoder and prefix recomputed at each step.

    python lm-bff/bench/template_search.py             # beam 100, 18 tokens, 32 examples
    python lm-bff/bench/template_search.py --quick

The other form is the authors' algorithm: at each step, for each hypothesis, encoder and whole decoder prefix are run on
all training examples (batches of 32), the last logits are averaged and normalised, and the beam + 3 likeliest
tokens are kept per hypothesis. The templates have to be the same, in the same order.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from lm_bff.data import Example
from lm_bff.search_templates import load_t5, shown_inputs
from lm_bff.tasks import TASKS
from lm_bff.template_beam import Blanks, search_texts
from lm_bff.template_text import SENTENCE_FIRST, to_template
from lm_bff.tiny_t5 import tiny_t5
from shared.bench import write_record
from shared.provenance import Watch

ROOT = Path(__file__).resolve().parents[2]
BATCH = 32


def examples(count: int, words: int) -> list[Example]:
    """`count` sentences of about `words` words, half of each class."""
    rng = torch.Generator().manual_seed(0)
    vocabulary = ["the", "film", "was", "great", "and", "terrible"]
    rows = []
    for number in range(count):
        length = int(torch.randint(words // 2, 3 * words // 2, (), generator=rng))
        picks = torch.randint(len(vocabulary), (length,), generator=rng).tolist()
        rows.append(Example((" ".join(vocabulary[i] for i in picks),), str(number * 2 // count)))
    return rows


@torch.inference_mode()
def recomputed(model, inputs: list[list[int]], blanks: Blanks, beam: int, max_tokens: int) -> list[tuple[tuple, bool]]:
    """The authors' algorithm over whole forward passes."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in inputs], True, model.config.pad_token_id)
    mask = (torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in inputs])[:, None]).long()
    beams = [((), 0.0, 1)]
    for _ in range(max_tokens):
        grown = [one for one in beams if one[2] > blanks.count]
        for text, score, counter in beams:
            if counter > blanks.count:
                continue
            prefix = torch.tensor([[model.config.decoder_start_token_id, *text]])
            logits = [
                model(
                    input_ids=ids[i : i + BATCH],
                    attention_mask=mask[i : i + BATCH],
                    decoder_input_ids=prefix.expand(len(ids[i : i + BATCH]), -1),
                    use_cache=False,
                ).logits[:, -1]
                for i in range(0, len(ids), BATCH)
            ]
            log_probs = torch.cat(logits).mean(dim=0).log_softmax(dim=-1)
            kept = 0
            for token in log_probs.argsort(descending=True).tolist():
                if token in blanks.forbidden or (text and token == text[-1] == blanks.full_stop):
                    continue
                grown.append(((*text, token), score + log_probs[token].item(), blanks.advance(counter, token)))
                kept += 1
                if kept == beam + 3:
                    break
        beams = sorted(grown, key=lambda one: -one[1])[:beam]
    return [(text, counter > blanks.count) for text, _, counter in beams]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beam", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=18)
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--words", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="smaller, no record unless --out is given")
    parser.add_argument("--out", type=Path, help="default: records/<date>-cpu-template-search.json beside this script")
    options = parser.parse_args()
    if options.quick:
        options.beam, options.max_tokens, options.rounds = 20, 10, 1
    watch = Watch(ROOT, config=vars(options), seed=0)
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = load_t5(str(tiny_t5(folder)))
        blanks = Blanks.of(tokenizer)
        train = examples(options.examples, options.words)
        inputs = shown_inputs(TASKS["sst-2"], train, SENTENCE_FIRST, tokenizer)
        ours, theirs = [], []
        for _ in range(options.rounds):
            start = time.perf_counter()
            found = search_texts(model, tokenizer, inputs, options.beam, options.max_tokens)
            middle = time.perf_counter()
            expected = recomputed(model, inputs, blanks, options.beam, options.max_tokens)
            ours.append(middle - start)
            theirs.append(time.perf_counter() - middle)

    def templates(texts: list[tuple[tuple, bool]]) -> list[str]:
        made = [
            to_template(tokenizer.convert_ids_to_tokens(list(text)), SENTENCE_FIRST) for text, done in texts if done
        ]
        return [template for template in made if template is not None]

    written, wanted = templates([(one.tokens, one.finished) for one in found]), templates(expected)
    results = {
        "seconds": ours,
        "recomputed_seconds": theirs,
        "ratio": statistics.median(theirs) / statistics.median(ours),
        "templates": len(written),
        "same_templates": written == wanted,
    }
    table = Table("beam", "tokens", "examples", "seconds", "recomputed", "ratio", "templates", "the same")
    row = [options.beam, options.max_tokens, options.examples, f"{statistics.median(ours):.2f}"]
    row += [f"{statistics.median(theirs):.1f}", f"{results['ratio']:.0f}", len(written), results["same_templates"]]
    table.add_row(*map(str, row))
    Console().print(table)
    if options.quick and options.out is None:
        return
    record = {
        "benchmark": "template_search",
        "threads": torch.get_num_threads(),
        "results": results,
        "provenance": watch.record(),
    }
    write_record(record, __file__, "cpu-template-search", options.out)


if __name__ == "__main__":
    main()
