"""Where the released data, prompts and recorded judgements are found, and what stands in for them."""

from __future__ import annotations

import logging
from pathlib import Path

from llmbar.convert import convert_release
from llmbar.data import HOUSE, HOUSE_FOLDER
from shared import InputError, hub

log = logging.getLogger(__name__)


def data_folder(set_names: list[str]) -> Path:
    """The folder below which the sets lie: ours for `House/...`, else the release's (mirror, cache, download).

    Raises NotAvailable (an InputError) where the release is nowhere, InputError for a mixture of both.
    """
    house = [name for name in set_names if name in HOUSE]
    if house and len(house) < len(set_names):
        raise InputError(f"data.sets mixes released sets with {house[0]}; ask for them in two runs")
    return HOUSE_FOLDER if house else hub.locate("llmbar", "dataset")


def prompt_folder(which: str) -> tuple[str, Path]:
    """("released" | "house", folder of prompt files). `auto` takes the released prompts where they are at hand."""
    if which not in ("auto", "released", "house"):
        raise InputError(f"prompts={which!r} is unknown; use auto, released or house")
    if which != "house":
        try:
            return "released", hub.locate("llmbar", "prompts")
        except hub.NotAvailable:
            if which == "released":
                raise
            log.warning("the released prompts are not on this machine: using the prompts written for this project")
    return "house", HOUSE_FOLDER / "prompts"


def recorded_files() -> list[Path]:
    """The recorded judges on this machine, by name; where only the release's own files are, they are converted once.

    Raises NotAvailable where there are none.
    """
    try:
        folder = hub.locate("llmbar", "recorded")
    except hub.NotAvailable:
        release = _recorded_release()
        if release is None:
            raise
        folder = hub.cache_folder("llmbar") / "recorded"
        if not folder.is_dir():
            log.warning("converting the release's recorded judgements, once, to %s", folder)
            convert_release(release, folder)
    return sorted(folder.glob("*.jsonl.gz"))


def _recorded_release() -> Path | None:
    try:
        return hub.locate("llmbar", "recorded_release")
    except hub.NotAvailable:
        return None
