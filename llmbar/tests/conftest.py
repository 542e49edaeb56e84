"""Shared by this folder's tests: instances and prompts that are always there, and a way to compose configurations."""

import gzip
import json
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

import shared.launch  # noqa: F401 (puts the shared configurations on Hydra's search path)
from llmbar.data import HOUSE, HOUSE_FOLDER, RELEASED, load_sets
from llmbar.prompts import read_templates
from llmbar.strategies import all_strategies

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@pytest.fixture(autouse=True)
def runs_elsewhere(tmp_path, monkeypatch):
    """Nothing a test runs is written into the checkout."""
    monkeypatch.setenv("REPRO_RUNS", str(tmp_path / "runs"))


@pytest.fixture(scope="session")
def strategies():
    return all_strategies()


@pytest.fixture(scope="session")
def house():
    return load_sets(HOUSE_FOLDER, list(HOUSE))


@pytest.fixture(scope="session")
def house_templates(strategies):
    return read_templates(HOUSE_FOLDER / "prompts", strategies)


@pytest.fixture(scope="session")
def released(mirror):
    """The thirteen released sets; for tests marked `mirror`."""
    return load_sets(mirror / "llmbar" / "Dataset", list(RELEASED))


@pytest.fixture(scope="session")
def released_templates(mirror, strategies):
    return read_templates(mirror / "llmbar" / "prompts", strategies)


@pytest.fixture(scope="session")
def recorded_folder(mirror):
    from shared import hub

    try:
        return hub.locate("llmbar", "recorded")
    except hub.NotAvailable as error:
        pytest.skip(str(error))


@pytest.fixture
def config():
    """config("judge=longer", "data=house") -> the configuration of llmbar.evaluate."""

    def compose(*overrides: str, name: str = "evaluate"):
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return hydra.compose(name, overrides=list(overrides))

    return compose


@pytest.fixture
def write_lines(tmp_path):
    """write_lines(records) -> a .jsonl.gz file of them."""

    def write(records, name: str = "Judge.jsonl.gz") -> Path:
        path = tmp_path / name
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
        return path

    return write


@pytest.fixture
def vanilla_lines(house):
    """A complete recorded judge on our sets: right on everything, in both orders."""
    lines = []
    for name, instances in house.items():
        for one in instances:
            letters = ("a", "b") if one.label == 1 else ("b", "a")
            out = [[f"Output ({letter})", "stop"] for letter in letters]
            lines.append({"set": name, "i": one.i, "strategy": "Vanilla", "stages": [{"out": out}]})
    return lines
