"""Run an entrypoint: on this process, under torchrun, with DeepSpeed, or on Slurm, from the same configuration.

Every `python -m <paper>.<verb>` is a function of a Hydra configuration wrapped in `entrypoint`. The wrapper

1. composes the configuration; Hydra writes nothing of its own (no `outputs/`, no change of folder): a run's files are
   where `shared.run_folders.run_folder` says, and nowhere else;
2. turns what a user can get wrong (`InputError`, an unknown key or group) into one message and exit status 2; anything
   else is a bug and keeps its traceback;
3. starts other processes where the `launch` group asks for them: `launch=torchrun launch.processes=8` runs the command
   again under the launcher with the same overrides, so what is tested on one process is what runs on many. DeepSpeed is
   started by torchrun too: its own launcher adds nothing on one node and needs ssh between several, and ZeRO is a
   matter of `TrainingArguments` (`shared.training`), not of how processes start.
"""

import functools
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from shared import InputError
from shared.run_folders import runs_root

# Set for the processes that a launcher started, so that they run the task instead of launching again.
LAUNCHED = "REPRO_LAUNCHED"
# A file in which a launched process leaves the message of its InputError; launchers pass on no exit status but 1.
COMPLAINT = "REPRO_COMPLAINT"
BAD_INPUT = 2


class SharedConfigs(SearchPathPlugin):
    """Puts `shared/configs` (the `launch` group) on the search path of entrypoints and of `hydra.compose` in tests."""

    def manipulate_search_path(self, search_path) -> None:
        search_path.append(provider="shared", path=f"file://{Path(__file__).parent / 'configs'}")


Plugins.instance().register(SharedConfigs)


def entrypoint(config_path: str = "../configs", config_name: str = "config") -> Callable:
    """Decorate `main(cfg: DictConfig)` as a command line program.

    Args:
        config_path: folder of the configurations, relative to the file that defines the function.
        config_name: the primary configuration in it, without `.yaml`.
    """

    def decorate(task: Callable[[DictConfig], None]) -> Callable[[], None]:
        folder = (Path(task.__code__.co_filename).parent / config_path).resolve()
        bad_input: list[InputError] = []

        @functools.wraps(task)
        def run_task(cfg: DictConfig) -> None:
            launch = cfg.get("launch")
            try:
                if launch is None or launch.kind == "local" or os.environ.get(LAUNCHED):
                    _refuse_many_without_a_launcher()
                    task(cfg)
                else:
                    start(launch, module_name(), list(HydraConfig.get().overrides.task))
            except InputError as error:
                if HydraConfig.get().mode == RunMode.MULTIRUN:
                    raise  # the job may run in another process, and Hydra says which job it was
                bad_input.append(error)  # raised past Hydra, which would print a preamble of its own

        program = hydra.main(version_base="1.3", config_path=str(folder), config_name=config_name)(run_task)

        @functools.wraps(task)
        def main() -> None:
            os.environ["HYDRA_FULL_ERROR"] = (
                "1"  # exceptions reach us instead of being printed and swallowed with status 1
            )
            given = sys.argv
            sys.argv = _with_quiet_hydra(given)
            try:
                program()
                if bad_input:
                    raise bad_input.pop()
            except InputError as error:
                _complain(str(error))
            except (HydraException, OmegaConfBaseException) as error:
                _complain(_explain(error, folder, config_name))
            finally:
                sys.argv = given

        return main

    return decorate


def _with_quiet_hydra(argv: Sequence[str]) -> list[str]:
    """Add the overrides that keep Hydra from writing files, before the user's own so that those win.

    They stand beside the first override because Hydra's parser takes positional arguments in one run only.
    """
    quiet = [
        "hydra.run.dir=.",
        "hydra.output_subdir=null",
        "hydra/job_logging=stdout",
        "hydra/hydra_logging=none",
        f"hydra.sweep.dir={runs_root()}/multirun",
        "hydra.sweep.subdir=.",
    ]
    first = next((i for i, word in enumerate(argv) if i > 0 and "=" in word and not word.startswith("-")), len(argv))
    return [*argv[:first], *quiet, *argv[first:]]


def _complain(message: str) -> None:
    """Leave with status 2 and one message. A launched process hands the message to the process that launched it."""
    complaint = os.environ.get(COMPLAINT)
    if complaint:
        Path(complaint).write_text(message, encoding="utf-8")
    else:
        print(f"error: {message}", file=sys.stderr)
    sys.exit(BAD_INPUT)


def _explain(error: Exception, folder: Path, config_name: str) -> str:
    """Hydra's message, its cause once, and the nearest existing key where an unknown one was given."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    cause = error.__cause__
    while cause is not None:
        lines += [line for line in str(cause).splitlines() if line.strip() and line not in lines]
        cause = cause.__cause__
    message = "\n".join(line for line in lines if not line.strip().startswith(("object_type=", "reference_type=")))
    unknown = re.search(r"Could not override '([^']+)'", message) or re.search(r"full_key: (\S+)", message)
    if unknown:
        near = get_close_matches(unknown.group(1), _known_keys(folder, config_name), n=1)
        message += f"\nDid you mean {near[0]}?" if near else "\n`--cfg job` prints every key."
    return message


def _known_keys(folder: Path, config_name: str) -> list[str]:
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(folder), version_base="1.3"):
            cfg = OmegaConf.to_container(hydra.compose(config_name), resolve=False)
    except (HydraException, OmegaConfBaseException):
        return []  # the configuration itself is broken, and its own message already says so
    return list(_dotted(cfg))


def _dotted(node: object, prefix: str = ""):
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _dotted(value, f"{prefix}{key}.")


def _refuse_many_without_a_launcher() -> None:
    """With several GPUs and no launcher, Trainer would fall back to nn.DataParallel, which no paper here supports."""
    if "RANK" in os.environ or "torch" not in sys.modules:
        return
    import torch

    if torch.cuda.is_available() and torch.cuda.device_count() > 1:
        raise InputError(
            f"{torch.cuda.device_count()} GPUs are visible to one process. Give it one (CUDA_VISIBLE_DEVICES=0) "
            "or start a process per GPU (launch=torchrun)."
        )


def module_name() -> str:
    """The module that was run with `python -m`, or the path of the script."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec is not None else str(Path(sys.argv[0]).resolve())


def start(launch: DictConfig, module: str, overrides: Sequence[str]) -> None:
    """Run `module` again under the launcher that `launch` describes, and wait for it.

    Raises:
        InputError: the launcher is missing, a count is wrong, or a launched process found bad input.
    """
    kinds = {"torchrun": _start_torchrun, "deepspeed": _start_torchrun, "slurm": _start_slurm}
    if launch.kind not in kinds:
        raise InputError(f"launch.kind={launch.kind} is not one of local, {', '.join(kinds)}.")
    kinds[launch.kind](launch, module, overrides)


def process_count(launch: DictConfig) -> int:
    """Processes on each node: what `launch.processes` says, else one per visible GPU."""
    if launch.get("processes") is None:
        import torch

        if not torch.cuda.is_available():
            raise InputError(
                "launch.processes is not set and there is no GPU to count: say launch.processes=2, for example."
            )
        return torch.cuda.device_count()
    if not isinstance(launch.processes, int) or launch.processes < 1:
        raise InputError(f"launch.processes={launch.processes}: give the number of processes on each node, 1 or more.")
    return launch.processes


def torchrun_command(
    launch: DictConfig,
    module: str,
    overrides: Sequence[str],
    *,
    node_rank: int | None = None,
    master: str | None = None,
) -> list[str]:
    """The command that starts this node's processes. One node finds a free port by itself; several meet at `master`."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={process_count(launch)}"]
    if launch.get("nodes", 1) > 1:
        rank = launch.get("node_rank") if node_rank is None else node_rank
        master = launch.get("master") if master is None else master
        if rank is None or master is None:
            raise InputError(
                f"launch.nodes={launch.nodes} needs launch.node_rank=<0..{launch.nodes - 1}> and "
                "launch.master=<host:port> on every node; launch=slurm finds both by itself."
            )
        host, _, port = str(master).partition(":")
        command += [
            f"--nnodes={launch.nodes}",
            f"--node-rank={rank}",
            f"--master-addr={host}",
            f"--master-port={port or 29500}",
        ]
    else:
        command.append("--standalone")
    module_or_script = ["-m", module] if not module.endswith(".py") else [module]
    return [*command, *module_or_script, *overrides]


def _start_torchrun(launch: DictConfig, module: str, overrides: Sequence[str]) -> None:
    if launch.kind == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        raise InputError("launch=deepspeed needs the package deepspeed: pip install deepspeed -c constraints/cpu.txt")
    run_and_pass_on(torchrun_command(launch, module, overrides), launched_environment(launch))


def launched_environment(launch: DictConfig) -> dict[str, str]:
    """The environment of launched processes: no second launch, cores shared out, the CPU where there is no GPU."""
    import torch

    environment = {**os.environ, LAUNCHED: "1"}
    processes = process_count(launch)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    if not torch.cuda.is_available():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    return environment


def run_and_pass_on(command: Sequence[str], environment: dict[str, str]) -> None:
    """Run a launcher to its end: its processes' bad input becomes ours, signals reach it, its failure is our status."""
    with tempfile.TemporaryDirectory() as folder:
        complaint = Path(folder) / "complaint"
        child = subprocess.Popen(command, env={**environment, COMPLAINT: str(complaint)})
        previous = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        try:
            status = child.wait()
        except KeyboardInterrupt:
            child.send_signal(signal.SIGINT)
            status = child.wait()
        finally:
            signal.signal(signal.SIGTERM, previous)
        if complaint.exists():
            raise InputError(complaint.read_text(encoding="utf-8"))
    if status:
        sys.exit(status if status > 0 else 128 - status)


def _on_node(launch: dict, module: str, overrides: list[str]) -> None:
    """What one Slurm task does: start this node's processes, meeting the others at the first host of the job."""
    import submitit

    launch = OmegaConf.create(launch)
    environment = submitit.JobEnvironment()
    command = torchrun_command(
        launch, module, overrides, node_rank=environment.node, master=f"{environment.hostnames[0]}:29500"
    )
    run_and_pass_on(command, launched_environment(launch))


def _start_slurm(launch: DictConfig, module: str, overrides: Sequence[str]) -> None:
    """Submit one job (a task per node) through submitit and wait; `launch.wait=false` returns after submitting."""
    if importlib.util.find_spec("submitit") is None:
        raise InputError("launch=slurm needs the package submitit: pip install submitit -c constraints/cpu.txt")
    if launch.cluster == "slurm" and shutil.which("sbatch") is None:
        raise InputError(
            "launch=slurm needs Slurm's sbatch on the PATH. Submit from a login node, or use launch=torchrun."
        )
    import submitit

    executor = submitit.AutoExecutor(folder=runs_root() / "slurm" / "%j", cluster=launch.cluster)
    executor.update_parameters(
        nodes=launch.nodes,
        tasks_per_node=1,
        cpus_per_task=launch.cpus_per_node,
        gpus_per_node=launch.gpus_per_node,
        timeout_min=launch.minutes,
        **({"slurm_partition": launch.partition} if launch.partition else {}),
        **({"slurm_additional_parameters": OmegaConf.to_container(launch.sbatch)} if launch.sbatch else {}),
    )
    job = executor.submit(_on_node, OmegaConf.to_container(launch, resolve=True), module, list(overrides))
    print(f"submitted job {job.job_id}; logs in {Path(str(job.paths.folder))}")
    if launch.wait:
        try:
            job.results()
        except submitit.core.utils.FailedJobError as error:
            message = str(error)
            if "InputError: " in message:
                raise InputError(message.rsplit("InputError: ", 1)[1].strip()) from error
            print(message, file=sys.stderr)
            sys.exit(1)


def split_batch(global_batch: int, processes: int, largest: int | None = None) -> tuple[int, int]:
    """Split a global batch into (examples per process and forward pass, accumulation steps), exactly.

    Args:
        global_batch: examples per optimiser step over all processes.
        processes: the world size.
        largest: the most examples that fit into one forward pass; None = no accumulation.

    Raises:
        InputError: the world size does not divide the batch, or no accumulation count makes the parts equal.
    """
    if global_batch < 1:
        raise InputError(f"batch_size={global_batch}: give the number of examples per optimiser step, 1 or more.")
    if global_batch % processes:
        below, above = global_batch - global_batch % processes, global_batch + processes - global_batch % processes
        fix = f"batch_size={above}" if below == 0 else f"batch_size={below} or {above}"
        raise InputError(f"batch_size={global_batch} does not divide among {processes} processes. Use {fix}.")
    mine = global_batch // processes
    if largest is None or mine <= largest:
        return mine, 1
    if mine % largest:
        raise InputError(
            f"{mine} examples per process are not a multiple of the {largest} that fit into one forward pass "
            f"(batch_size={global_batch}, {processes} processes). Use a divisor of {mine}."
        )
    return largest, mine // largest
