"""What only shows when inputs are opened is refused before anything starts: one line, exit code 2, no run folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from twinpod.cli.__main__ import main

SAMPLE = Path(__file__).resolve().parents[2] / "manifests/samples/reverse-letters.yaml"
ENTRY = 'entryPoint: {target: "twinpod.sampling.letters:reverse", settings: {letters: 5, alphabet: 10}}'


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("letters:reverse", "letters:revers", "no function 'revers'; did you mean twinpod.sampling.letters:reverse?"),
        ("abcdefghij=", "abcdefghi=", "add the missing characters 'j' to model.tokenizer.characters"),
        (ENTRY, "reasoningGym: {name: spell_backwards}", "did you mean spell_backward?"),
        (ENTRY, "jsonLines: {path: /no/such/file.jsonl}", "/no/such/file.jsonl"),
        ('tokenizer: {characters: "abcdefghij="}', "tokenizer: {path: /no/such/folder}", "there is no folder"),
    ],
)
def test_a_bad_input_is_one_line_and_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, line: str
) -> None:
    text = SAMPLE.read_text()
    assert old in text
    (tmp_path / "job.yaml").write_text(text.replace(old, new))
    code = main(["run", str(tmp_path / "job.yaml"), "--local", "--out", str(tmp_path / "run")])
    told = capsys.readouterr().err
    assert code == 2
    assert line in told
    assert told.count("\n") == 1
    assert "Traceback" not in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        (r'{"prompt":"ab\ud83d","answer":"ba"}', "bad.jsonl:2: prompt has half a character"),
        (r'{"prompt":"ab","answer":"ba\ud83d"}', "bad.jsonl:2: answer has half a character"),
        ("[" * 100_000, "bad.jsonl:2: is nested too deeply"),
    ],
)
def test_a_bad_line_of_the_data_is_refused_by_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: str, line: str
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt":"abc","answer":"cba"}\n' + bad + "\n")
    (tmp_path / "job.yaml").write_text(SAMPLE.read_text().replace(ENTRY, f"jsonLines: {{path: {tmp_path}/bad.jsonl}}"))
    assert main(["run", str(tmp_path / "job.yaml"), "--local", "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert line in told
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()
