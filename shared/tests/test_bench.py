"""Records of comparisons: where they lie by default, and that what is there already is replaced whole."""

import json
import re

from shared.bench import write_record


def test_a_record_lies_dated_beside_its_script_or_where_it_is_asked_for(tmp_path, capsys):
    path = write_record({"ratio": 2.0}, tmp_path / "bench" / "speed.py", "cpu-speed")
    assert path.parent == tmp_path / "bench" / "records" and json.loads(path.read_text()) == {"ratio": 2.0}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-cpu-speed\.json", path.name)
    assert capsys.readouterr().out == f"record: {path}\n"
    other = tmp_path / "deep" / "er" / "mine.json"
    assert write_record({"ratio": 3.0}, "speed.py", "cpu-speed", other) == other
    assert write_record({"ratio": 4.0}, "speed.py", "cpu-speed", other) == other
    assert json.loads(other.read_text()) == {"ratio": 4.0} and list(other.parent.iterdir()) == [other]
