"""The shape of an embedding space: `python -m simcse.analyze model=... what=[align_uniform,singular_values]`.

Three looks at the STS-B sentences (SimCSE, section 5, appendices F and G): alignment against uniformity, the spectrum
of the embedding matrix, and how cosines spread per level of gold similarity. One model or several side by side
(`model=[a,b]`). The paper measures on the whole of STS-B (split=all, 17,256 sentences); dev has 3,000. Where STS-B is
missing the project's own graded pairs stand in, and the result says so in `sts_data`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, ListConfig

from shared import InputError, hub
from shared.launch import entrypoint
from shared.results import Run
from simcse import plots
from simcse.alignment import POSITIVE_ABOVE, alignment, cosine_by_gold_bin, normalized_spectrum, uniformity
from simcse.embedding import embed_sentences, load_encoder
from simcse.senteval import load_graded_pairs, load_sts
from simcse.senteval.sts import Pairs, cosine, spearman

LOOKS = ("align_uniform", "singular_values", "cosine_density")
SPLITS = {"all": ("train", "dev", "test"), "train": ("train",), "dev": ("dev",), "test": ("test",)}


@dataclass
class Analysis:
    """What was found for one model: numbers for results.json, arrays for the plots."""

    metrics: dict[str, Any] = field(default_factory=dict)
    spectrum: np.ndarray | None = None
    cosine_bins: list[np.ndarray] | None = None


def spectrum_summary(spectrum: np.ndarray) -> dict[str, float]:
    """How concentrated a spectrum is, from singular values (rank,) of any common scale.

    Returns:
        top1_share: the largest squared singular value over the sum of squares: 1/rank for a flat spectrum, 1 for a
            line.
        effective_rank: exp of the entropy of the singular values' distribution (Roy and Vetterli, 2007), 1 .. rank.
    """
    values = np.asarray(spectrum, dtype=float)
    share = values / values.sum()
    positive = share[share > 0]
    return {
        "top1_share": float(values.max() ** 2 / np.square(values).sum()),
        "effective_rank": float(np.exp(-(positive * np.log(positive)).sum())),
    }


def check_looks(what: Sequence[str]) -> None:
    """Raise InputError unless `what` is a non-empty list out of LOOKS."""
    if isinstance(what, str) or not what or set(what) - set(LOOKS):
        raise InputError(f"what={what}: give a list out of {', '.join(LOOKS)}")


def analyze_embeddings(
    first: np.ndarray, second: np.ndarray, gold: np.ndarray, what: Sequence[str] = LOOKS
) -> Analysis:
    """All looks asked for, from the embeddings of the two sides of scored pairs.

    Args:
        first, second: (pairs, hidden). gold: (pairs,) similarity from 0 to 5.
        what: out of LOOKS. The Spearman correlation ("spearman", 0-1 scale) is always measured.
    Raises:
        InputError: an unknown look, or no pair with a gold score above 4 to align.
    """
    check_looks(what)
    found = Analysis({"spearman": spearman(cosine(first, second), np.asarray(gold))})
    x, y = torch.from_numpy(np.asarray(first)), torch.from_numpy(np.asarray(second))
    both = torch.cat([x, y])
    if "align_uniform" in what:
        close = torch.from_numpy(np.asarray(gold) > POSITIVE_ABOVE)
        if not close.any():
            raise InputError(f"no pair has a gold score above {POSITIVE_ABOVE:g}, so alignment has no positive pairs")
        found.metrics |= {
            "align": alignment(x[close], y[close]),
            "uniform": uniformity(both),
            "positive_pairs": int(close.sum()),
        }
    if "singular_values" in what:
        found.spectrum = normalized_spectrum(both).numpy()
        found.metrics["singular_values"] = {**spectrum_summary(found.spectrum), "normalized": found.spectrum.tolist()}
    if "cosine_density" in what:
        found.cosine_bins = [bin_.numpy() for bin_ in cosine_by_gold_bin(x, y, torch.from_numpy(np.asarray(gold)))]
        found.metrics["cosine_density"] = {
            f"gold_{low}_{low + 1}": {
                "pairs": len(values),
                "mean_cosine": float(values.mean()) if len(values) else None,
                "std_cosine": float(values.std(ddof=1)) if len(values) > 1 else None,
            }
            for low, values in enumerate(found.cosine_bins)
        }
    return found


def load_pairs(split: str, data_dir: str | Path | None = None) -> tuple[Pairs, str]:
    """STS-B pairs of a split, and in words what they are; the project's graded pairs where STS-B is not at hand.

    Raises:
        InputError: an unknown split, or a `data_dir` that lacks the files.
    """
    if split not in SPLITS:
        raise InputError(f"split={split} is not one of {', '.join(SPLITS)}")
    if data_dir is None:
        try:
            data_dir = hub.locate("simcse", "senteval")
        except hub.NotAvailable:
            return load_graded_pairs(), "graded pairs of this project"
    parts = [load_sts(data_dir, ["STSBenchmark"], part)["STSBenchmark"][part] for part in SPLITS[split]]
    pairs = Pairs(
        [text for part in parts for text in part.first],
        [text for part in parts for text in part.second],
        np.concatenate([part.gold for part in parts]),
    )
    return pairs, f"STS-B {split}"


def label_of(model: str) -> str:
    """A short name: the last part of a hub id or folder; for a run's model folder the run's name."""
    path = Path(model)
    return path.parent.name if path.name in ("model", "checkpoint") and path.parent.name else path.name


def draw(run: Run, found: dict[str, Analysis], source: str) -> None:
    """The figures of what was looked at, for all models together."""
    models = ", ".join(found)
    metrics = {name: one.metrics for name, one in found.items()}
    placed = {name: m for name, m in metrics.items() if "align" in m and m["spearman"] is not None}
    if len(placed) > 1:
        points = [(name, m["align"], m["uniform"], m["spearman"]) for name, m in placed.items()]
        caption = f"Alignment against uniformity on {source}, coloured by Spearman correlation (paper: Figure 3)."
        alt = "; ".join(f"{name}: alignment {a:.3f}, uniformity {u:.2f}, Spearman {s:.3f}" for name, a, u, s in points)
        run.save_plot("alignment_uniformity", plots.alignment_uniformity(points), caption, alt)
    spectra = {name: one.spectrum for name, one in found.items() if one.spectrum is not None}
    if spectra:
        caption = f"Singular values of the embeddings of {source}, each divided by the largest (paper: Figure F.1)."
        run.save_plot("singular_values", plots.singular_values(spectra), caption, f"Falling curves of {models}.")
    bins = {name: one.cosine_bins for name, one in found.items() if one.cosine_bins is not None}
    if bins:
        caption = f"Density of the cosine of {source} pairs by gold similarity; dotted: median (paper: Figure G.1)."
        alt = f"Five stacked density curves for each of {models}."
        run.save_plot("cosine_density", plots.cosine_densities(bins), caption, alt)


def analyze(cfg: DictConfig) -> Path:
    """Embed, measure, draw, and write results.json; returns its path.

    Raises:
        InputError: no model, two models of one name, or what the parts refuse.
    """
    if not cfg.model:
        raise InputError("model is missing: give a folder, a hub id or minilm, or several as model=[a,b]")
    models = list(cfg.model) if isinstance(cfg.model, ListConfig) else [cfg.model]
    labels = [label_of(model) for model in models]
    if len(set(labels)) < len(labels):
        raise InputError(f"model={models}: two have the same name {labels}; analyze them one by one or rename a folder")
    check_looks(cfg.what)
    paths = [hub.model_path(model, cfg.paper) for model in models]
    pairs, source = load_pairs(cfg.split, cfg.data_dir)
    name = cfg.experiment or "analyze_" + "_".join(labels)
    run = Run(cfg.paper, name, cfg.scale, cfg.output_dir, config=cfg, seed=cfg.seed)
    found: dict[str, Analysis] = {}
    for path, label in zip(paths, labels, strict=True):
        encoder, tokenizer = load_encoder(path, cfg.pooler)
        vectors = embed_sentences(
            encoder, tokenizer, [*pairs.first, *pairs.second], batch_tokens=cfg.batch_tokens, progress=True
        )
        found[label] = analyze_embeddings(vectors[: len(pairs)], vectors[len(pairs) :], pairs.gold, list(cfg.what))
        found[label].metrics["pooler"] = encoder.eval_pooler
    run.metrics |= {"sts_data": source, "pairs": len(pairs)}
    run.metrics |= found[labels[0]].metrics if len(found) == 1 else {label: one.metrics for label, one in found.items()}
    draw(run, found, source)
    return run.finish()


@entrypoint(config_path="../configs", config_name="analyze")
def main(cfg: DictConfig) -> None:
    analyze(cfg)


if __name__ == "__main__":
    main()
