"""What a run measured, beside what the paper says, with where it came from: results.json and the table on the terminal.

    run = Run(paper="simcse", experiment="unsup", scale="laptop", config=cfg, seed=42)   # the clock starts here
    run.metrics["stsb_dev"] = 0.70                                    # plain numbers, strings, lists, nested dicts
    run.metrics["scratch"] = {"unsup": over_seeds([0.53, 0.54, 0.52])}  # several seeds: mean, std, n, values
    run.save_plot("alignment_uniformity", figure, caption="...")
    run.finish()                                                      # judges the claims, writes results.json, prints

results.json appears whole or not at all. paper.yaml is read when the run starts, so that a mistake in it ends the run
before the hours are spent, not after. Provenance leaves out secrets and machine paths, because the file is made to be
committed (`report.py` copies it to <paper>/records/).
"""

import io
import json
import math
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shared import InputError
from shared.claims import FAILS, HOLDS, NotMeasured, Verdict, find_metric, is_summary
from shared.paper import Comparison, Paper, load_paper, project_root
from shared.provenance import Watch
from shared.run_folders import run_folder

MAX_TERMINAL_ROWS = 60
RESULT_KEYS = ("paper", "experiment", "scale", "metrics", "claims", "provenance")


def over_seeds(values: list[float]) -> dict[str, Any]:
    """Several seeds' values as {"mean", "std", "n", "values"}; std is the sample deviation, None for a single seed.

    Raises:
        InputError: an empty list.
    """
    if not values:
        raise InputError("over_seeds: no values; give one per seed")
    values = [float(value) for value in values]
    mean = math.fsum(values) / len(values)
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else None
    return {"mean": mean, "std": std, "n": len(values), "values": values}


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Write a file so that a reader sees the old content or the new, never a part (temporary file, fsync, rename)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def is_main_process() -> bool:
    """Whether this process is the one that writes (rank 0, or the only one)."""
    return int(os.environ.get("RANK", "0")) == 0


def plain(value: Any, path: str = "metrics") -> Any:
    """A metric as JSON can hold it: numpy and torch numbers become Python's.

    Raises:
        InputError: NaN, an infinity, a key that is not a string, or a value of another kind; named by its path.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise InputError(f"{path}: key {key!r} is not a string")
        return {key: plain(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{path} is {value}: a result must be finite; store None (undefined) if that is what it is")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(f"{path} is a {type(value).__name__}: metrics are numbers, strings, lists, dicts, bools or None")


class Run:
    """One run of one experiment, from its start to its results.json.

    Args:
        paper: the paper's folder ("simcse"). experiment, scale: which cell of the plan ("unsup", "laptop" | "paper").
        output_dir: where to write; None means runs/<paper>/<scale>/<experiment>.
        config: the resolved configuration (DictConfig or dict), kept in the provenance without secrets.
        seed: the seed, or the list of seeds.
    Raises:
        InputError: an unknown paper, or a malformed paper.yaml.

    On a process whose rank is not 0 nothing is written or printed.
    """

    def __init__(
        self,
        paper: str,
        experiment: str,
        scale: str,
        output_dir: str | Path | None = None,
        config: Any = None,
        seed: int | list[int] | None = None,
    ):
        self.watch = Watch(project_root(), config=config, seed=seed)
        self.paper: Paper = load_paper(paper)
        self.experiment, self.scale = experiment, scale
        self.output_dir = Path(run_folder(paper, scale, experiment, output_dir))
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.metrics: dict[str, Any] = {}
        self.plots: list[dict[str, str]] = []

    def save_plot(self, name: str, figure: Any, caption: str, alt: str | None = None) -> Path:
        """Save a matplotlib figure as <output_dir>/plots/<name>.png, list it in results.json, and close it.

        Args:
            caption: what to see in it, a sentence for the reader.
            alt: what a reader who cannot see it is told; default the caption.
        """
        from matplotlib import pyplot

        if not name.replace("_", "").replace("-", "").isalnum():
            raise InputError(f"plot name {name!r}: use letters, digits, - and _")
        path = self.output_dir / "plots" / f"{name}.png"
        if is_main_process():
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=150)
            write_atomic(path, buffer.getvalue())
        pyplot.close(figure)
        self.plots = [plot for plot in self.plots if plot["name"] != name]
        self.plots.append({"name": name, "file": f"plots/{name}.png", "caption": caption, "alt": alt or caption})
        return path

    def finish(self, console: Console | None = None) -> Path:
        """Judge the claims, write results.json, print the table; returns results.json's path.

        Raises:
            InputError: a metric that cannot be stored (NaN, inf, ...), named by its path; nothing is written then.
        """
        metrics = plain(self.metrics)
        path = self.output_dir / "results.json"
        if not is_main_process():
            return path
        verdicts = self.paper.judge(self.scale, self._lookup(metrics))
        result = {
            "paper": self.paper.name,
            "experiment": self.experiment,
            "scale": self.scale,
            "metrics": metrics,
            "claims": [verdict.as_dict() for verdict in verdicts],
            "provenance": self.watch.record(),
            "plots": self.plots,
        }
        write_atomic(path, json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        print_result(self.paper, result, verdicts, console or Console())
        return path

    def _lookup(self, metrics: dict[str, Any]):
        """m("path") reads this run; m("path", "experiment") reads that experiment's last results of the same scale."""

        def metric(path: str, experiment: str | None = None) -> Any:
            source = metrics
            if experiment not in (None, self.experiment):
                folder = Path(run_folder(self.paper.name, self.scale, experiment))
                record = self.paper.path.parent / "records" / self.scale / f"{experiment}.json"
                source = read_metrics([folder / "results.json", record], experiment)
            return metric_or_not_measured(source, path, experiment)

        return metric


def metric_or_not_measured(metrics: dict[str, Any], path: str, experiment: str | None = None) -> Any:
    """`find_metric`, with NotMeasured (the reason in a verdict) for a path that is not there."""
    try:
        return find_metric(metrics, path)
    except KeyError:
        of = f" of {experiment}" if experiment else ""
        raise NotMeasured(f"metric {path}{of} was not measured") from None


def read_metrics(paths: list[Path], experiment: str) -> dict[str, Any]:
    """The metrics in the first of these results.json that exists. Raises NotMeasured where none does."""
    for path in paths:
        if path.is_file():
            return load_result(path)["metrics"]
    raise NotMeasured(f"experiment {experiment} has not been run")


def load_result(path: Path) -> dict[str, Any]:
    """Read a results.json. Raises InputError where it is not one."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as results: {error}") from None
    if not isinstance(result, dict) or (missing := [key for key in RESULT_KEYS if key not in result]):
        what = f"lacks {', '.join(missing)}" if isinstance(result, dict) else "is not a mapping"
        raise InputError(f"{path} is not a results.json: it {what}")
    if not isinstance(result["metrics"], dict):
        raise InputError(f"{path}: metrics is not a mapping")
    return result


# ------------------------------------------------------------------------------------------ the table on the terminal


def flatten(metrics: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted path, value) of every number, text and several-seed summary; lists are left to results.json."""
    rows = []
    for key, value in metrics.items():
        if isinstance(value, dict) and not is_summary(value):
            rows += flatten(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            rows.append((f"{prefix}{key}", value))
    return rows


def print_result(paper: Paper, result: dict[str, Any], verdicts: list[Verdict], console: Console) -> None:
    """Metric, measured, paper, difference; then the claims with their verdicts and the numbers behind them."""
    rows = paper.compare(result["experiment"], result["scale"], result["metrics"])
    if not rows:
        flat = flatten(result["metrics"])
        rows = [Comparison(label, value, None, format=".4g") for label, value in flat[:MAX_TERMINAL_ROWS]]
        if len(flat) > MAX_TERMINAL_ROWS:
            rows.append(Comparison(f"... {len(flat) - MAX_TERMINAL_ROWS} more in results.json", "", None))
    table = Table(
        title=escape(f"{result['paper']}: {result['experiment']}, scale {result['scale']}"), title_justify="left"
    )
    table.add_column("metric", overflow="fold")
    for name in ("measured", "paper", "difference"):
        table.add_column(name, justify="right", no_wrap=name != "measured")
    for row in rows:
        about = "; ".join(filter(None, (row.source, row.note)))
        label = f"{row.label} ({about})" if about else row.label
        table.add_row(escape(label), escape(row.measured_text()), row.paper_text(), row.difference_text())
    console.print(table)
    testable = [verdict for verdict in verdicts if verdict.testable]
    if testable:
        claims = Table(title="claims", title_justify="left", show_lines=False)
        for name in ("claim", "verdict", "because"):
            claims.add_column(name, overflow="fold")
        for verdict in testable:
            colour = {HOLDS: "green", FAILS: "red"}[verdict.verdict]
            claims.add_row(escape(verdict.text), f"[{colour}]{verdict.verdict}[/]", escape(verdict.detail))
        console.print(claims)
    if rest := len(verdicts) - len(testable):
        console.print(f"{rest} of {len(verdicts)} claims are not testable by this run; results.json says why for each.")
    seconds = result["provenance"]["wall_time_s"]
    memory = result["provenance"]["peak_memory_bytes"] / 2**30
    console.print(f"{seconds:.0f} s, {memory:.1f} GiB at the peak", style="dim")
