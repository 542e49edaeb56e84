"""A fine-tuned model as a list of numbers: the seeds and projected gradients of its steps (MeZO, section 2.2).

    line 1    JSON: base model (id and a digest of its weights), trainable tensors (names, shapes, type), random
              numbers, estimator, weight decay, and whatever else decides how a record changes the weights
    then      one binary record per step: seed (u64), projected gradient (f32), lr (f64), crc32 chained from the header

24 bytes a step: 20,000 steps of a 13B model are 480 kB. The projected gradient is rounded to fp32 before it is used, so
what is stored is what was applied, and `replay` gives the same weights bit for bit (on any device with rng=counter, on
the same kind of device with rng=torch). A record that is cut off, changed, missing or out of order breaks the chain.
A killed run needs nothing else: it replays its own file and goes on.
"""

import hashlib
import itertools
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mezo.spsa import Parameters, pieces
from shared import InputError

FORMAT = "mezo-trajectory-1"
RECORD = struct.Struct("<QfdI")
RECORDS_PER_PASS = 256
PIECE_OF_REPLAY = 1 << 18  # elements per thread: 1 MiB, in the second-level cache


@dataclass(frozen=True)
class Header:
    """What must be the same when a trajectory is replayed."""

    base: str
    base_sha256: str
    names: list[str]
    shapes: list[list[int]]
    dtypes: list[str]
    device: str
    rng: str
    weight_decay: float = 0.0
    decayed: list[bool] = field(default_factory=list)
    update: str = "sgd"  # MeZO.rule
    extra: dict[str, Any] = field(default_factory=dict)
    format: str = FORMAT

    def line(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode() + b"\n"


@dataclass(frozen=True)
class Step:
    """One applied estimate: theta <- theta - lr (projected_gradient z(seed) + weight decay)."""

    seed: int
    projected_gradient: float
    lr: float


def weights_sha256(params: Sequence[Tensor]) -> str:
    """A digest of the values of all tensors, in order."""
    digest = hashlib.sha256()
    for tensor in params:
        flat = tensor.detach().contiguous().view(-1).cpu()
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()


def describe(named: Sequence[tuple[str, Tensor]], base: str, rng: str, **settings: Any) -> Header:
    """The header for a run that starts from these tensors as they are now."""
    return Header(
        base=base,
        base_sha256=weights_sha256([tensor for _, tensor in named]),
        names=[name for name, _ in named],
        shapes=[list(tensor.shape) for _, tensor in named],
        dtypes=[str(tensor.dtype).removeprefix("torch.") for _, tensor in named],
        device=named[0][1].device.type if named else "cpu",
        rng=rng,
        **settings,
    )


class Writer:
    """Appends steps to a trajectory; each is with the operating system before the next begins.

    Raises InputError for a file of another run. `steps` are those the file held already (a torn last record is cut).
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.steps: list[Step] = []
        if self.path.exists() and self.path.stat().st_size:
            known, self.steps, end, self._crc = _read(self.path, torn="cut")
            differing = [name for name, value in asdict(header).items() if asdict(known)[name] != value]
            if differing:
                raise InputError(
                    f"trajectory {self.path} belongs to another run ({', '.join(differing)} differ): name another file"
                )
            self._file = self.path.open("r+b")
            self._file.truncate(end)
            self._file.seek(end)
        else:
            self._file = self.path.open("wb")
            self._file.write(header.line())
            self._crc = zlib.crc32(header.line())
            self._file.flush()

    def keep(self, count: int) -> None:
        """Drop all records behind the first `count`."""
        self._file.flush()
        line, body = self.path.read_bytes().split(b"\n", 1)
        self._crc, end = zlib.crc32(line + b"\n"), len(line) + 1 + count * RECORD.size
        for _, record in itertools.islice(_records(body), count):
            self._crc = zlib.crc32(record[:-4], self._crc)
        self._file.truncate(end)
        self._file.seek(end)
        self.steps = self.steps[:count]

    def append(self, step: Step) -> None:
        body = struct.pack("<Qfd", step.seed, step.projected_gradient, step.lr)
        self._crc = zlib.crc32(body, self._crc)
        self._file.write(body + struct.pack("<I", self._crc))
        self._file.flush()

    def close(self) -> None:
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


def read(path: Path) -> tuple[Header, list[Step]]:
    """A whole trajectory. Raises InputError for one that is truncated, changed or reordered, naming the record."""
    header, steps, _, _ = _read(Path(path), torn="refuse")
    return header, steps


def recorded_steps(path: Path) -> list[Step]:
    """The whole records of a file whose last one a kill may have cut."""
    return _read(Path(path), torn="cut")[1]


def _read(path: Path, torn: str) -> tuple[Header, list[Step], int, int]:
    """(header, steps, bytes of the intact part, crc after it); `torn="cut"` allows an unfinished last record."""
    try:
        with path.open("rb") as file:
            line, body = file.readline(), file.read()
    except OSError as error:
        raise InputError(f"trajectory {path} cannot be read: {error.strerror}") from None
    try:
        fields = json.loads(line) if line.endswith(b"\n") else {}
        known = isinstance(fields, dict) and fields.get("format") == FORMAT
        header = Header(**fields) if known else None
    except (ValueError, TypeError):
        header = None
    if header is None:
        raise InputError(f"{path} is not a trajectory of this program (no {FORMAT} header)")
    steps, crc = [], zlib.crc32(line)
    for number, (begin, record) in enumerate(_records(body)):
        if len(record) < RECORD.size:
            if torn == "refuse":
                raise InputError(f"trajectory {path} is truncated in record {number}: fetch it again")
            return header, steps, len(line) + begin, crc
        seed, gradient, lr, stored = RECORD.unpack(record)
        crc = zlib.crc32(record[:-4], crc)
        if crc != stored:
            raise InputError(f"trajectory {path}: record {number} is changed, missing or out of order: fetch it again")
        steps.append(Step(seed, gradient, lr))
    return header, steps, len(line) + len(body), crc


def _records(body: bytes) -> Iterator[tuple[int, bytes]]:
    for begin in range(0, len(body), RECORD.size):
        yield begin, body[begin : begin + RECORD.size]


def replay(
    model: nn.Module,
    file: Path,
    *,
    check_base: bool = True,
    steps: int | None = None,
    scales: Callable[[int], Sequence[float]] | None = None,
) -> int:
    """Turn the base model into the fine-tuned one, in place; returns the number of steps applied.

    Args:
        model: the base model, with the trainable tensors of the header under the same names (LoRA or prefix modules
            added as they were).
        check_base: hash the weights first. Replaying on other weights gives a model nobody has trained.
        steps: only the first so many.
        scales: of a run whose scales were a function: the same one.

    Raises:
        InputError: names, shapes, types, weights or the kind of device are not those of the header; a broken file.
    """
    header, recorded = read(Path(file))
    parameters = dict(model.named_parameters())
    named = [(name, parameters[name]) for name in header.names if name in parameters]
    refuse_other(header, named, file, check_base)
    chosen = recorded if steps is None else recorded[:steps]
    if header.update != "sgd":
        from mezo.optimizer import MeZO  # late: it imports this module

        if header.extra["n"] == "a function":
            raise InputError(f"trajectory {file}: n was a function; replay with MeZO(..., n=it).apply_recorded(steps)")
        options = _like(header)
        if options["scales"] == "a function":
            if scales is None:
                raise InputError(f"trajectory {file}: scales was a function; give it to replay(..., scales=it)")
            options["scales"] = scales
        optimizer = MeZO(named, 0.0, **options, model=model if header.extra["restore"] == "exact" else None)
        optimizer.decayed = header.decayed
        return optimizer.apply_recorded(chosen)
    apply_steps(named, chosen, header.rng, header.weight_decay, header.decayed)
    return len(chosen)


def _like(header: Header) -> dict[str, Any]:
    """The arguments of the optimiser that wrote the file."""
    kept = {name: value for name, value in header.extra.items() if name != "about"}
    options = {**kept, "rng": header.rng, "weight_decay": header.weight_decay}
    return {**options, "betas": options["betas"] and tuple(options["betas"])}


def refuse_other(header: Header, named: Sequence[tuple[str, Tensor]], file: Path, check_base: bool) -> None:
    """InputError unless these tensors are the ones the trajectory starts from."""
    have = describe(named, header.base, header.rng) if check_base else None
    names = [name for name, _ in named]
    if missing := [name for name in header.names if name not in names]:
        raise InputError(f"trajectory {file}: the model has no trainable tensor {missing[0]} ({len(missing)} missing)")
    for (name, tensor), shape, dtype in zip(named, header.shapes, header.dtypes, strict=True):
        if list(tensor.shape) != shape or str(tensor.dtype) != f"torch.{dtype}":
            found = f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
            raise InputError(f"trajectory {file}: {name} is {found} here, {shape} {dtype} there")
    if header.rng == "torch" and named and named[0][1].device.type != header.device:
        raise InputError(
            f"trajectory {file}: rng=torch gives other numbers on {named[0][1].device.type} than on {header.device}"
        )
    if have is not None and have.base_sha256 != header.base_sha256:
        raise InputError(f"trajectory {file}: the weights are not those of its base model ({header.base})")


@torch.no_grad()
def apply_steps(
    params: Parameters, steps: Sequence[Step], rng: str, weight_decay: float = 0.0, decayed: Sequence[bool] = ()
) -> None:
    """Apply many steps with one pass over memory: a piece of the weights takes all of them while it is in the cache.

    Elementwise the operations and their order are those of training, so the bits are too.
    """
    tensors = [item[1] if isinstance(item, tuple) else item for item in params]
    for tensor in tensors:
        if not tensor.is_contiguous():  # several streams write to one piece: it must be the weight itself, no copy
            tensor.data = tensor.data.contiguous()
    for begin in range(0, len(steps), RECORDS_PER_PASS):
        some = steps[begin : begin + RECORDS_PER_PASS]
        piece = PIECE_OF_REPLAY * torch.get_num_threads()
        streams = [pieces(tensors, step.seed, rng, piece) for step in some]
        for together in zip(*streams, strict=True):
            for step, (number, part, draw) in zip(some, together, strict=True):
                apply_one(part, draw, step, weight_decay if not decayed or decayed[number] else 0.0)


def apply_one(part: Tensor, draw: Any, step: Step, weight_decay: float, mask: Any = None) -> None:
    """theta <- theta (1 - lr wd) - lr g z for one piece: the update rule, in the one place where it is written."""
    if weight_decay:
        part.mul_(1 - step.lr * weight_decay)
    draw(part, -step.lr * step.projected_gradient, mask)
