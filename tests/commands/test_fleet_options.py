"""Files as the options of `plan` and `simulate` take them."""

import gzip
from pathlib import Path

import pytest

from extproc.commands.fleet_options import OptionError, read_workload
from extproc.fleet.workload import Recorded

CSV = "ContextTokens,GeneratedTokens\n374,44\n396,109\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_may_be_gzipped_and_marked(
    tmp_path: Path, encoding: str, packed: bool
) -> None:
    path = tmp_path / "log.csv"
    data = CSV.encode(encoding)
    path.write_bytes(gzip.compress(data) if packed else data)
    lengths = read_workload(str(path)).lengths
    assert isinstance(lengths, Recorded)
    assert lengths.prompts.tolist() == [374, 396]


def test_notes_on_a_file_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log.csv"
    path.write_text(CSV + "1,\n")
    read_workload(str(path))
    said = capsys.readouterr().err
    assert "log.csv: 1 of 3 records have no usable token counts" in said
    assert "log.csv: 2 records are few" in said


def test_a_file_of_other_columns_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("a;b\n1;2\n")
    with pytest.raises(OptionError, match=r"--workload: log.csv: columns a, b; expec"):
        read_workload(str(path))
