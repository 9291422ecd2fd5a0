"""The table of wheels is read off the wheels themselves."""

import json
from zipfile import ZipFile

import pytest

from bench import results_file, wheels

NAMES = ("wcord_fast-0.1.0-cp311-cp311-manylinux_2_34_x86_64.whl", "wcord_fast-0.1.0-cp39-cp39-linux_x86_64.whl")


def made(folder, name, cuda):
    folder.mkdir(exist_ok=True)
    with ZipFile(folder / name, "w") as archive:
        archive.writestr("wcord_fast/_native.so", bytes(2_500_000))
        archive.writestr("wcord_fast/_build_info.json", json.dumps({"cuda": cuda, "compiler": "g++ 12"}))


def test_sizes_python_and_cuda_are_those_of_the_files(tmp_path, capsys):
    made(tmp_path / "dist", NAMES[0], True)
    made(tmp_path / "dist", NAMES[1], False)
    assert wheels.main([str(tmp_path / "dist"), "--made-from", "abc1234", "--out", str(tmp_path)]) == 0
    rows = results_file.read("wheels", tmp_path)
    assert [(r["tag"], r["platform"], r["mb"], r["module_mb"], r["cuda"]) for r in rows] == [
        ("cp311", "manylinux_2_34_x86_64", 2.5, 2.5, True),
        ("cp39", "linux_x86_64", 2.5, 2.5, False),
    ]
    text = wheels.wheels_table(rows)
    assert "| CPython 3.11 | manylinux_2_34_x86_64 | 2.5 | 2.5 |" in text and "CPython 3.9" in text
    assert "With C++ code" in text and "abc1234" in text
    newer = [{**rows[0], "date": "later"}]
    assert "CPython 3.9" not in wheels.wheels_table([*rows, *newer]) and "C++ and CUDA" in wheels.wheels_table(newer)


def test_other_files_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        wheels.main([str(tmp_path)])
    assert "found none; .ci/wheels makes them" in capsys.readouterr().err
    made(tmp_path, "other-1-py3-none-any.whl", False)
    with pytest.raises(ValueError, match="expected wcord_fast-VERSION"):
        wheels.main([str(tmp_path), "--out", str(tmp_path / "out")])
