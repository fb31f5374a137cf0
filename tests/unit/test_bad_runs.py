"""What only shows when inputs are opened is refused before anything starts: one line, exit code 2, no run folder."""

from __future__ import annotations

import os
import subprocess
import sys
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


@pytest.mark.parametrize("command", [["twinpod"], [sys.executable, "-m", "twinpod.cli"]], ids=["twinpod", "python -m"])
@pytest.mark.parametrize("place", ["beside", "PYTHONPATH"])
def test_a_module_of_the_user_s_is_found_beside_the_manifest_and_by_pythonpath(
    tmp_path: Path, command: list[str], place: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    modules = tmp_path / ("elsewhere" if place == "PYTHONPATH" else "")
    (modules / "my_rewards.py").write_text("def right(prompt, text): return 1.0\n")
    (modules / "my_data.py").write_text("def some(settings, seed, size): return []\n")
    reward = 'reward: {kind: entryPoint, target: "my_rewards:rigth"}'
    text = SAMPLE.read_text().replace("reward: {kind: prefix}", reward)
    assert reward in text
    (tmp_path / "reward.yaml").write_text(text)
    (tmp_path / "data.yaml").write_text(text.replace(ENTRY, 'entryPoint: {target: "my_data:some"}'))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    if place == "PYTHONPATH":
        environment["PYTHONPATH"] = str(modules)
    for name, line in (
        ("reward", "my_rewards has no function 'rigth'"),
        ("data", "my_data:some has 0 distinct prompts"),
    ):
        done = subprocess.run(
            [*command, "run", str(tmp_path / f"{name}.yaml"), "--local", "--out", str(tmp_path / "run")],
            cwd="/",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert line in done.stderr
