"""`whylens banks generate` against a real server, and `whylens banks` as it was."""

import json
import sys

import pytest
from chat_server import running, status

from whylens.banks import load_bank
from whylens.cli import main


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments):
        from whylens.cli import console

        console.output.cache_clear()
        console.errors.cache_clear()
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setattr(sys, "argv", ["whylens", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def server(monkeypatch, tmp_path):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("WHYLENS_CACHE", str(tmp_path / "home"))
    (tmp_path / "names.txt").write_text("goldfish\nant\nCD/DVD player\nant\n")
    with running() as made:
        yield made


def generate(run, server, tmp_path, *more, out="bank.json"):
    return run(
        *("banks", "generate", "--classes", tmp_path / "names.txt", "--endpoint", server.url, "--model", "pretended"),
        *("--out", tmp_path / out, *more),
    )


def test_a_dry_run_costs_nothing(run, server, tmp_path):
    code, out, err = generate(run, server, tmp_path, "--dry-run", "--max-calls", 5)
    assert code == 0, err
    assert "3 subjects, 0 of them complete in the cache" in out
    assert "Needed: 3 to 9 calls (limit: at most 5)" in out
    assert server.requests == []
    assert not (tmp_path / "bank.json").exists()


def test_a_bank_is_written_and_shown(run, server, tmp_path, monkeypatch):
    monkeypatch.setenv("A_KEY", "secret-1")
    code, out, err = generate(run, server, tmp_path, "--key-env", "A_KEY")
    assert code == 0, err
    assert "Needed: 3 to 9 calls" in err
    assert "18 phrases kept" in out
    assert "removed by the filter 'class name'" in out
    assert "secret-1" not in out + err
    assert {h["Authorization"] for h in server.headers} == {"Bearer secret-1"}
    assert len(load_bank(tmp_path / "bank.json")) == 18
    assert json.loads((tmp_path / "bank.audit.json").read_text())["cost"]["calls"] == len(server.requests)
    code, out, _ = run("banks", tmp_path / "bank.json")
    assert code == 0
    assert "18 phrases in 3 groups" in out
    code, _, err = generate(run, server, tmp_path)
    assert code == 2
    assert "exists already" in err


def test_a_limit_then_the_same_command_then_offline(run, server, tmp_path):
    code, _, err = generate(run, server, tmp_path, "--max-calls", 3)
    assert code == 2
    assert "limit of 3 calls is reached" in err
    assert "goes on from there" in err
    assert not (tmp_path / "bank.json").exists()
    for _ in range(3):
        code, _, err = generate(run, server, tmp_path, "--max-calls", 3)
        if code == 0:
            break
    assert code == 0, err
    count = len(server.requests)
    code, out, err = generate(run, server, tmp_path, "--offline", out="again.txt")
    assert code == 0, err
    assert "0 calls" in out
    assert len(server.requests) == count
    assert load_bank(tmp_path / "again.txt").phrases == load_bank(tmp_path / "bank.json").phrases


def test_class_names_of_a_lens_and_a_refused_key(run, server, tmp_path):
    server.troubles = [status(401, "who are you")]
    code, _, err = run(
        *("banks", "generate", "--lens", "tiny-imagenet", "--endpoint", server.url, "--model", "pretended"),
        *("--out", tmp_path / "b.json", "--max-calls", 2),
    )
    assert code == 2
    assert "100 subjects" in err
    assert "who are you" in err
    assert len(server.requests) == 1
    assert '"goldfish"' in server.requests[0]["messages"][1]["content"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lens", "tiny-imagenet"], "either --classes FILE or --lens NAME"),
        (["--key-env", "NOT_SET_ANYWHERE"], "'NOT_SET_ANYWHERE'"),
        (["--only-images"], "needs --images"),
        (["--max-calls", 0], "limit of calls"),
        (["--offline"], "3 of 3 subjects have no complete answers"),
    ],
)
def test_usage_that_cannot_work(run, server, tmp_path, more, message):
    code, _, err = generate(run, server, tmp_path, *more)
    assert code == 2
    assert message in err
    assert server.requests == []


def test_other_endings_and_missing_addresses(run, server, tmp_path):
    assert "Accepted endings" in generate(run, server, tmp_path, out="bank.xml")[2]
    names = tmp_path / "names.txt"
    code, _, err = run("banks", "generate", "--classes", names, "--model", "m", "--out", tmp_path / "b.json")
    assert code == 2
    assert "--endpoint URL" in err


def test_banks_are_shown_as_before(run):
    code, out, _ = run("banks")
    assert code == 0
    assert "everyday" in out
    shown = run("banks", "everyday")
    assert shown[0] == 0
    assert shown == run("banks", "show", "everyday")
    assert run("banks", "everyday", "--group", "colours")[1] == run("banks", "--group", "colours", "everyday")[1]
    code, _, err = run("banks", "everydy")
    assert code == 2
    assert "everyday" in err
    code, out, _ = run("banks", "--help")
    assert code == 0
    assert "generate" in out
