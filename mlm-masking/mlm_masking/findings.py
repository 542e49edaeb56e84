"""From finished cells to the numbers that the claims of paper.yaml are judged by.

Every comparison is made within a seed (same initial weights, order of the text and held-out masks) and then taken over
the seeds, so what is judged is the difference and its own spread, not two means. Losses are held-out, in nats; a
positive difference is one in favour of the claim. What a run of this size cannot decide is None, and the claim then
ends as not testable.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from mlm_masking.laptop_plan import pair_name, rate_name
from mlm_masking.loss import bits_and_perplexity
from mlm_masking.small_runs import UNTRAINED
from shared.results import over_seeds

# Name in results.json -> name of the held-out loss (`heldout.name_of`).
LOSSES = {"own": "own", "at15": "15", "at40": "40", "at80": "80"}
Results = Mapping[str, Sequence[Mapping[str, Any]]]  # cell's name -> its parts, one per seed


class Findings:
    """Differences within seeds.

    Args:
        results: cell's name -> one dict of parts per seed, in the same order of seeds everywhere.
    """

    def __init__(self, results: Results):
        self.results = results

    def loss(self, cell: str, at: str = "15") -> list[float]:
        """The cell's held-out losses at an evaluation rate, one per seed."""
        return [parts["training"]["loss"][at] for parts in self.results[cell]]

    def gain(self, better: str, worse: str, at: str = "15") -> dict[str, Any] | None:
        """How much lower the loss of `better` is than that of `worse`; None where one of them was not run."""
        if better not in self.results or worse not in self.results:
            return None
        pairs = zip(self.loss(better, at), self.loss(worse, at), strict=True)
        return over_seeds([high - low for low, high in pairs])

    def best_rate(self, cells: Mapping[float, str], at: str = "15") -> dict[str, Any] | None:
        """The rate with the lowest loss, seed by seed; None where nothing was run."""
        cells = {rate: cell for rate, cell in cells.items() if cell in self.results}
        if not cells:
            return None
        losses = {rate: self.loss(cell, at) for rate, cell in cells.items()}
        seeds = range(len(next(iter(losses.values()))))
        return over_seeds([min(losses, key=lambda rate: losses[rate][seed]) for seed in seeds])


def cell_metrics(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One cell's metrics over the seeds."""
    training = [one["training"] for one in parts]
    found = {key: over_seeds([t["loss"][name] for t in training]) for key, name in LOSSES.items()}
    found["ppl"] = over_seeds([bits_and_perplexity(t["loss"]["own"])[1] for t in training])
    found["pred_rate"] = over_seeds([t["measured"]["pred_rate"] for t in training])
    found["corr_rate"] = over_seeds([t["measured"]["corr_rate"] for t in training])
    found["left_plateau_at"] = [t["plateau"]["left_at"] for t in training]
    found["flops"] = training[0]["cost"]["flops"]
    return found | probe_metrics(parts)


def probe_metrics(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the probes found, over the seeds; what was not asked is left out."""
    names = {"order": "accuracy", "blimp": "accuracy", "finetune": "score"}
    return {
        name: over_seeds([one[name][key] for one in parts])
        for name, key in names.items()
        if all(name in one for one in parts)
    }


def rate_findings(found: Findings, sizes: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """What the sweeps over rates and sizes say."""
    result: dict[str, Any] = {}
    for size, rates in sizes.items():
        cells = {rate: f"{size}/{rate_name(rate)}" for rate in rates}
        result[size] = {
            "best_rate": found.best_rate(cells),
            "best_rate_at_40": found.best_rate(cells, "40"),
            "forty_over_fifteen": found.gain(f"{size}/m40", f"{size}/m15"),
            "forty_over_eighty": found.gain(f"{size}/m40", f"{size}/m80"),
            "own_rise": _least_step(found, size),
            "fixed_rise": _least_rise(found, f"{size}/m40"),
        }
    if len(sizes) > 1:
        small, *_, large = sizes
        shared_rates = [rate for rate in sizes[small] if rate in sizes[large]]
        best = [
            found.best_rate({rate: f"{size}/{rate_name(rate)}" for rate in shared_rates}) for size in (small, large)
        ]
        if None not in best:
            result["optimum_growth"] = over_seeds(
                [after - before for before, after in zip(best[0]["values"], best[1]["values"], strict=True)]
            )
    return result


def _least_step(found: Findings, size: str) -> dict[str, Any] | None:
    """The smaller of the two steps of the loss at the model's own rate, from 15 to 40 and from 40 to 80 %."""
    cells = [f"{size}/m{rate}" for rate in (15, 40, 80)]
    if any(cell not in found.results for cell in cells):
        return None
    own = [found.loss(cell, "own") for cell in cells]
    return over_seeds([min(b - a, c - b) for a, b, c in zip(*own, strict=True)])


def _least_rise(found: Findings, cell: str) -> dict[str, Any] | None:
    """The smaller of the two steps of one model's loss when 15, 40 and 80 % are hidden from it."""
    if cell not in found.results:
        return None
    losses = [found.loss(cell, at) for at in ("15", "40", "80")]
    return over_seeds([min(b - a, c - b) for a, b, c in zip(*losses, strict=True)])


def decoupling_findings(found: Findings, size: str, grid: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Corruption at equal prediction, prediction at equal corruption; every neighbouring pair of the grid."""
    corruption, prediction = (sorted({pair[axis] for pair in grid}) for axis in (0, 1))

    def cell(c: float, p: float) -> str:
        return f"{size}/{rate_name(c)}" if c == p else f"{size}/{pair_name(c, p)}"

    less_corruption = {
        f"p{100 * p:g}_c{100 * low:g}_over_c{100 * high:g}": found.gain(cell(low, p), cell(high, p))
        for p in prediction
        for low, high in pairwise(corruption)
    }
    more_prediction = {
        f"c{100 * c:g}_p{100 * high:g}_over_p{100 * low:g}": found.gain(cell(c, high), cell(c, low))
        for c in corruption
        for low, high in pairwise(prediction)
    }
    return {"less_corruption": less_corruption, "more_prediction": more_prediction}


def strategy_findings(
    found: Findings, size: str, rates: Sequence[float], strategies: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """Each strategy against uniform masking at its rates, and its best rate among them beside uniform's."""
    result = {}
    for strategy, tried in strategies.items():
        both = [rate for rate in tried if rate in rates]
        cells = {rate: f"{size}/{strategy}-{rate_name(rate)}" for rate in both}
        uniform = {rate: f"{size}/{rate_name(rate)}" for rate in both}
        best, best_uniform = found.best_rate(cells), found.best_rate(uniform)
        result[strategy] = {
            "uniform_over": {rate_name(rate): found.gain(uniform[rate], cells[rate]) for rate in both},
            "best_rate": best,
            "best_rate_uniform": best_uniform,
        }
        if best and best_uniform:
            pairs = zip(best_uniform["values"], best["values"], strict=True)
            result[strategy]["uniform_wants_more"] = over_seeds([high - low for high, low in pairs])
    return result


def replacement_findings(found: Findings, size: str, schemes: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """How much mask-only replacement is ahead of each scheme."""
    return {
        scheme: {
            rate_name(rate): found.gain(f"{size}/{rate_name(rate)}", f"{size}/{scheme}-{rate_name(rate)}")
            for rate in rates
        }
        for scheme, rates in schemes.items()
    }


def probe_findings(found: Findings, size: str) -> dict[str, Any]:
    """Each probe: gain over the untrained model at 15 and 80 %, and what 80 % keeps of the score of 15 %.

    What is kept is None where pre-training at 15 % is not ahead of the untrained model by two standard deviations of
    the difference: where nothing was gained, that nothing is lost says nothing.
    """
    result: dict[str, Any] = {}
    names = {"order": "accuracy", "blimp": "accuracy", "finetune": "score"}
    cells = {name: f"{size}/{name}" for name in ("m15", "m40", "m80", UNTRAINED)}
    if any(cell not in found.results for cell in cells.values()):
        return result
    for probe, key in names.items():
        if not all(probe in parts for cell in cells.values() for parts in found.results[cell]):
            continue
        scores = {name: [parts[probe][key] for parts in found.results[cell]] for name, cell in cells.items()}
        gains = {
            name: over_seeds([a - b for a, b in zip(scores[name], scores[UNTRAINED], strict=True)])
            for name in ("m15", "m40", "m80")
        }
        learned = gains["m15"]["mean"] > 2 * (gains["m15"]["std"] or 0.0)
        kept = [a / b for a, b in zip(scores["m80"], scores["m15"], strict=True)]
        result[probe] = {
            "gain": gains,
            "eighty_keeps": over_seeds(kept) if learned else None,
            "forty_over_fifteen": over_seeds([a - b for a, b in zip(scores["m40"], scores["m15"], strict=True)]),
        }
    return result
