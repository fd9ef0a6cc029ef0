"""Banks written by a model behind a real server: filters, limits, cache, resuming, audit."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from chat_server import KNOWLEDGE, answer_for, body, envelope, hangs, reply, running, says, status
from PIL import Image

from whylens.banks import (
    ConceptBank,
    Endpoint,
    EndpointError,
    LimitReachedError,
    Limits,
    Recipe,
    generate_bank,
    load_bank,
    plan_generation,
    read_class_names,
)
from whylens.errors import InputError, StoreError, WhylensError

CLASSES = ["goldfish", "ant", "CD/DVD player"]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch, tmp_path):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("WHYLENS_CACHE", str(tmp_path / "home"))


@pytest.fixture
def server():
    with running() as made:
        yield made


@pytest.fixture
def model(server):
    return Endpoint(server.url, "pretended", sleep=lambda seconds: None, timeout=5)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    paths = []
    for i in range(2):
        path = folder / f"{i}.png"
        Image.fromarray(np.full((40, 700, 3), 80 * i, np.uint8)).save(path)
        paths.append(path)
    return paths


def generate(model, tmp_path, names=CLASSES, **options):
    return generate_bank(names, model, cache=options.pop("cache", tmp_path / "cache"), **options)


def test_a_bank_from_class_names(server, model, tmp_path):
    made = generate(model, tmp_path)
    bank = made.bank
    assert isinstance(bank, ConceptBank)
    # In the order of classes and answers, cleaned, without class names, repeats and sentences.
    assert bank.phrases == (
        *("orange scales", "shiny body", "forked tail", "fins", "glass bowl", "green plants"),
        *("tiny black body", "elegant shape", "six legs", "antennae", "thin legs", "leaf"),
        *("silver case", "flat box", "disc tray", "round buttons", "wooden shelf", "television"),
    )
    assert bank.groups[:5] == ("appearance", "appearance", "parts", "parts", "surroundings")
    assert bank.sources[0] == "pretended on class goldfish"
    assert bank.sources[-1] == "pretended on class CD/DVD player"
    gone = {item.phrase: item for item in made.removed}
    assert gone["goldfish colour"].filter == "class name"
    assert "'goldfish'" in gone["goldfish colour"].reason
    assert gone["red ants"].filter == "class name"
    assert gone["a very long sentence about soil".removeprefix("a ")].filter == "length"
    assert gone["fins"].filter == "duplicate"
    assert gone["fins"].source == "pretended on class CD/DVD player"
    assert gone["green plant"].filter == "near duplicate"
    assert "green plants" in gone["green plant"].reason
    assert len(made.removed) + len(bank) == sum(s.phrases for s in made.subjects)
    assert [d.phrase for d in bank.audit] == [item.phrase for item in made.removed]


def test_the_whole_word_filter_keeps_words_that_merely_contain_a_class(model, tmp_path):
    kept = generate(model, tmp_path).bank.phrases
    assert {"elegant shape", "antennae", "green plants"} <= set(kept)


def test_rounds_ask_for_what_is_missing_and_end(server, model, tmp_path):
    made = generate(model, tmp_path, ["goldfish"], recipe=Recipe(per_class=30, rounds=5))
    # The second answer brings nothing new, so that no third one is asked for.
    assert len(server.requests) == 2
    assert "orange scales" in server.requests[1]["messages"][1]["content"].partition("do not repeat")[2]
    assert "List 23 entries" in server.requests[1]["messages"][1]["content"]
    assert made.subjects[0].note == "7 different phrases of 30 wanted after 2 answer(s)"
    assert made.subjects[0].answers == 2
    server.requests.clear()
    generate(model, tmp_path / "b", ["goldfish"], recipe=Recipe(per_class=7))
    assert len(server.requests) == 1


def test_a_second_run_needs_no_network_and_no_key(server, model, tmp_path, monkeypatch):
    monkeypatch.setenv("A_KEY", "x")
    model.key_env = "A_KEY"
    first = generate(model, tmp_path)
    count = len(server.requests)
    monkeypatch.delenv("A_KEY")
    server.every = lambda handler, request: pytest.fail("asked again")
    again = generate(model, tmp_path, offline=True)
    assert len(server.requests) == count
    assert again.bank == first.bank
    assert again.bank.fingerprint == first.bank.fingerprint
    assert again.removed == first.removed
    assert again.cost.calls == 0
    assert all(s.kept == s.answers for s in again.subjects)
    # Without the word offline too.
    assert generate(model, tmp_path).cost.calls == 0


def test_offline_says_what_is_missing(server, model, tmp_path):
    generate(model, tmp_path, ["goldfish", "ant"])
    with pytest.raises(InputError, match=r"1 of 3 subjects.*'CD/DVD player'"):
        generate(model, tmp_path, offline=True)
    made = generate(model, tmp_path, offline=True, partial=True)
    assert made.subjects[-1].note.startswith("not asked")
    assert len(made.subjects) == 3
    other = Endpoint(model.url, "another", sleep=lambda s: None)
    with pytest.raises(InputError, match=r"3 of 3 subjects.*other configurations: \d+ of pretended"):
        generate(other, tmp_path, offline=True)


def test_names_with_slashes_and_repeated_names_round_trip(server, model, tmp_path):
    made = generate(model, tmp_path, ["CD/DVD player", "sunglasses", "../../etc/x", "sunglasses", "CON"])
    assert [s.name for s in made.subjects] == ["CD/DVD player", "sunglasses", "../../etc/x", "CON"]
    files = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert files
    assert all(p.suffix == ".json" and len(p.relative_to(tmp_path / "cache").parts) == 2 for p in files)
    assert all(set(p.stem) <= set("0123456789abcdef") for p in files)
    target, audit = made.save(tmp_path / "bank.json")
    content = json.loads(audit.read_text(encoding="utf-8"))
    assert content["settings"]["class_names"] == ["CD/DVD player", "sunglasses", "../../etc/x", "sunglasses", "CON"]
    assert {"CD/DVD player", "../../etc/x"} <= {s["name"] for s in content["subjects"]}
    assert load_bank(target).phrases == made.bank.phrases


@pytest.mark.parametrize("ending", ["json", "txt", "csv"])
def test_saved_banks_are_read_by_load_bank(model, tmp_path, ending):
    made = generate(model, tmp_path)
    target, audit = made.save(tmp_path / f"my.{ending}")
    bank = load_bank(target)
    assert (bank.phrases, bank.groups) == (made.bank.phrases, made.bank.groups)
    assert audit.name == "my.audit.json"
    with pytest.raises(StoreError, match="exists already"):
        made.save(target)
    before = target.read_bytes()
    generate(model, tmp_path, offline=True).save(target, overwrite=True)
    assert target.read_bytes() == before


def test_the_audit_accounts_for_everything(model, tmp_path):
    made = generate(model, tmp_path)
    _, audit = made.save(tmp_path / "my.json")
    content = json.loads(audit.read_text(encoding="utf-8"))
    assert content["bank"]["fingerprint"] == made.bank.fingerprint
    assert content["configuration"]["prompt_version"] == "1"
    assert content["configuration"]["model"]["name"] == "pretended"
    assert sum(content["removed_by_filter"].values()) == len(content["removed"]) == len(made.removed)
    assert content["cost"]["calls"] == made.cost.calls
    text = made.summary()
    assert "18 phrases kept" in text
    assert "2 removed by the filter 'class name'" in text
    assert f"{made.cost.calls} calls" in text


def test_kept_answers_say_where_they_are_from(server, model, tmp_path, monkeypatch):
    monkeypatch.setenv("A_KEY", "top-secret")
    model.key_env = "A_KEY"
    generate(model, tmp_path)
    for path in (tmp_path / "cache").rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        assert "top-secret" not in text
        assert content["configuration"]["model"] == model.identity
        assert content["configuration"]["parameters"]["temperature"] == 0
        assert content["answer"]["created"].startswith("20")
        assert len(content["answer_sha256"]) == len(content["sha256"]) == 64


def test_damaged_cache_files_are_noticed_and_rebuilt(server, model, tmp_path):
    first = generate(model, tmp_path)
    files = sorted((tmp_path / "cache").rglob("*.json"))
    changed = files[0].read_text(encoding="utf-8").replace('\\"', "'", 1)
    files[0].write_text(changed, encoding="utf-8")
    files[1].write_bytes(files[1].read_bytes()[:50])
    files[2].write_bytes(b"\x00\xff")
    server.requests.clear()
    again = generate(model, tmp_path)
    assert again.bank == first.bank
    assert len(server.requests) == again.cost.calls == 3
    assert sorted(again.rebuilt) == sorted(p.name for p in files[:3])
    assert "3 damaged cache file(s)" in again.summary()
    assert generate(model, tmp_path).cost.calls == 0


def test_a_file_moved_under_another_question_is_not_taken(server, model, tmp_path):
    generate(model, tmp_path, ["goldfish"], recipe=Recipe(rounds=1))
    generate(model, tmp_path, ["ant"], recipe=Recipe(rounds=1))
    first, second = sorted((tmp_path / "cache").rglob("*.json"))
    second.write_bytes(first.read_bytes())
    made = generate(model, tmp_path, ["goldfish", "ant"], recipe=Recipe(rounds=1))
    assert made.rebuilt == (second.name,)
    assert "forked tail" in made.bank.phrases
    assert "antennae" in made.bank.phrases


@pytest.mark.parametrize(
    "change",
    [{"model": "another"}, {"recipe": Recipe(temperature=0.5)}, {"recipe": Recipe(answer_tokens=100)}],
    ids=str,
)
def test_answers_of_another_configuration_are_not_mixed(server, model, tmp_path, change):
    generate(model, tmp_path, ["goldfish"])
    count = len(server.requests)
    other = Endpoint(model.url, change["model"]) if "model" in change else model
    plan = plan_generation(["goldfish"], other, recipe=change.get("recipe"), cache=tmp_path / "cache")
    assert plan.calls == 1
    assert plan.others == {"pretended": count}
    made = generate(other, tmp_path, ["goldfish"], recipe=change.get("recipe"))
    assert made.cost.calls == count


def test_the_plan_costs_nothing_and_bounds_the_cost(server, model, tmp_path):
    plan = plan_generation(CLASSES, model, limits=Limits(calls=2, tokens=100_000), cache=tmp_path / "cache")
    assert server.requests == []
    assert (plan.subjects, plan.complete, plan.calls, plan.most_calls) == (3, 0, 3, 9)
    assert "at most 2" in plan.summary()
    assert "may stop this run" in plan.summary()
    made = generate(model, tmp_path)
    assert plan.calls <= made.cost.calls <= plan.most_calls
    # The pretended usage is 360 a call, below the estimate of a full answer.
    assert made.cost.tokens / made.cost.calls < plan.tokens / plan.calls
    after = plan_generation(CLASSES, model, cache=tmp_path / "cache")
    assert (after.complete, after.calls, after.tokens) == (3, 0, 0)


@pytest.mark.parametrize("limits", [Limits(calls=3), Limits(tokens=2_700)], ids=["calls", "tokens"])
def test_a_limit_in_the_middle_and_going_on(server, model, tmp_path, limits):
    complete = generate(model, tmp_path / "whole")
    server.requests.clear()
    with pytest.raises(LimitReachedError, match=r"[12] of 3 subjects are complete.*goes on"):
        generate(model, tmp_path, limits=limits)
    spent = len(server.requests)
    assert 0 < spent <= 5
    for _ in range(5):
        try:
            made = generate(model, tmp_path, limits=limits)
            break
        except LimitReachedError:
            continue
    assert made.bank == complete.bank
    # No answer was paid for twice.
    assert len(server.requests) == complete.cost.calls


def test_tokens_never_exceed_their_limit(server, model, tmp_path):
    limit = 5_000
    with pytest.raises(LimitReachedError):
        generate(model, tmp_path, [f"class number {'i' * i}" for i in range(40)], limits=Limits(tokens=limit))
    assert 0 < 360 * len(server.requests) <= limit


def test_a_partial_bank_on_request(server, model, tmp_path):
    made = generate(model, tmp_path, limits=Limits(calls=2), partial=True)
    assert "orange scales" in made.bank.phrases
    assert "television" not in made.bank.phrases
    assert [s.note.startswith("not asked") for s in made.subjects] == [False, True, True]
    assert made.cost.calls == 2


@pytest.mark.parametrize("workers", [1, 3])
def test_interrupted_in_the_middle_and_going_on(server, model, tmp_path, workers):
    complete = generate(model, tmp_path / "whole")
    server.requests.clear()

    def interrupt(done, total):
        assert total == 3
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, tmp_path, progress=interrupt, workers=workers)
    made = generate(model, tmp_path, workers=workers)
    assert made.bank == complete.bank
    assert len(server.requests) == complete.cost.calls


def test_workers_give_the_same_bank(server, model, tmp_path):
    names = [*CLASSES, *(f"class {'x' * i}" for i in range(12))]
    one = generate(model, tmp_path / "a", names)
    running_now, most, lock = [0], [0], threading.Lock()

    def slow(handler, request):
        with lock:
            running_now[0] += 1
            most[0] = max(most[0], running_now[0])
        hangs(0.03)(handler, request)
        with lock:
            running_now[0] -= 1
        return False

    server.every = slow
    many = generate(model, tmp_path / "b", names, workers=4)
    assert many.bank == one.bank
    assert many.cost == one.cost
    assert 1 < most[0] <= 4


def test_troubles_on_the_way_do_not_change_the_bank(server, model, tmp_path):
    quiet = generate(model, tmp_path / "a")

    def wrapped(handler, request):
        said = json.dumps(answer_for(request))
        reply(handler, 200, envelope(f"Sure, here you are:\n```json\n{said}\n```\nAnything else?"))

    server.troubles = [status(429, Retry_After="1"), wrapped, status(500), body(b"{"), wrapped, wrapped]
    loud = generate(model, tmp_path / "b")
    assert loud.bank == quiet.bank
    assert loud.cost.calls == quiet.cost.calls + 3


def test_a_fatal_error_keeps_what_was_answered(server, model, tmp_path):
    server.troubles = [None, None, status(401, "expired")]
    with pytest.raises(EndpointError, match="expired"):
        generate(model, tmp_path)
    server.requests.clear()
    made = generate(model, tmp_path)
    assert made.subjects[0].kept == 2
    assert len(server.requests) == made.cost.calls == 4


def test_nonsense_for_one_subject_is_told_and_asked_again_later(server, model, tmp_path):
    server.troubles = [says("I am sorry, but I cannot help with that.")]
    made = generate(model, tmp_path)
    assert made.subjects[0].note.startswith("answer 1 held no phrase: 'I am sorry")
    assert "goldfish: answer 1 held no phrase" in made.summary()
    assert "orange scales" not in made.bank.phrases
    assert "orange scales" in generate(model, tmp_path).bank.phrases


def test_only_nonsense_ends_the_run_early(server, model, tmp_path):
    server.every = lambda handler, request: says("I cannot say.")(handler, request) or True
    names = [f"class {'x' * i}" for i in range(20)]
    with pytest.raises(WhylensError, match=r"no phrase for 3 subjects in a row.*I cannot say"):
        generate(model, tmp_path, names)
    assert len(server.requests) == 3
    with pytest.raises(WhylensError, match="No usable phrase"):
        generate(model, tmp_path, names[:2])


@pytest.mark.parametrize(
    ("phrases", "options", "message"),
    [
        (["ant", "red ants", "an ant leg"], {}, r"keeps 0 of 3.*3 to the filter 'class name'"),
        (["one two three four", "five six seven eight"], {}, r"2 to the filter 'length'"),
        (["123", "4 5"], {}, r"2 to the filter 'form'"),
        (["red leg", "red legs", "red-leg"], {}, r"keeps 1 of 3.*2 to the filter 'near duplicate'"),
        (["six legs", "thin waist"], {"max_words": 1}, r"2 to the filter 'length'.*at most 1"),
    ],
)
def test_a_bank_that_loses_every_phrase_says_to_which_filter(server, model, tmp_path, phrases, options, message):
    server.every = lambda handler, request: says({"parts": phrases})(handler, request) or True
    with pytest.raises(InputError, match=message):
        generate(model, tmp_path, ["ant"], recipe=Recipe(rounds=1), **options)


def test_pictures_are_described_without_their_class(server, model, tmp_path, pictures):
    (tmp_path / "pictures" / "bad.png").write_bytes(b"no picture")
    copy = tmp_path / "pictures" / "copy.png"
    copy.write_bytes(pictures[0].read_bytes())
    made = generate(model, tmp_path, ["goldfish"], pictures=[*pictures, tmp_path / "pictures" / "bad.png", copy])
    asked = [r["messages"][-1]["content"] for r in server.requests]
    told = [parts for parts in asked if isinstance(parts, list)]
    assert told
    assert all(
        "goldfish" not in parts[0]["text"].replace("these are known", "").partition("not repeat")[0] for parts in told
    )
    assert [s.name for s in made.subjects] == ["goldfish", "0.png", "1.png", "bad.png"]
    assert made.subjects[3].note
    assert "kitchen table" in made.bank.phrases
    # The class filter holds for pictures too.
    assert ("goldfish", "class name") in {(r.phrase, r.filter) for r in made.removed if "0.png" in r.source}
    count = len(server.requests)
    only = generate(model, tmp_path, ["goldfish"], pictures=pictures, ask_classes=False)
    assert len(server.requests) == count
    assert {s.kind for s in only.subjects} == {"picture"}


def test_pictures_are_known_by_content_not_by_name(server, model, tmp_path, pictures):
    generate(model, tmp_path, ["x"], pictures=pictures, ask_classes=False)
    count = len(server.requests)
    moved = tmp_path / "elsewhere.png"
    pictures[0].rename(moved)
    generate(model, tmp_path, ["x"], pictures=[moved], ask_classes=False)
    assert len(server.requests) == count


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], {}, "nothing to ask about"),
        ("goldfish", {}, "list of names"),
        (["a", " "], {}, "number 1 is no text"),
        (["a"], {"workers": 0}, "workers"),
        (["a"], {"max_words": 0}, "max_words"),
    ],
)
def test_arguments_that_cannot_be_used(server, model, tmp_path, names, options, message):
    with pytest.raises(InputError, match=message):
        generate(model, tmp_path, names, **options)
    assert server.requests == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Limits(calls=0), "limit of calls"),
        (lambda: Limits(tokens=-5), "limit of tokens"),
        (lambda: Recipe(per_class=0), "per_class"),
        (lambda: Recipe(temperature=3), "temperature"),
        (lambda: Recipe(rounds=0), "rounds"),
    ],
)
def test_settings_that_cannot_be_used(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_bank_file_of_another_ending_is_refused(model, tmp_path):
    made = generate(model, tmp_path)
    for name in ("bank.xml", "bank", "bank.audit.json"):
        with pytest.raises(InputError, match="Accepted endings"):
            made.save(tmp_path / name)


def test_a_cache_that_cannot_be_written_costs_the_keeping_only(server, model, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.warns(UserWarning, match="could not be kept"):
        made = generate(model, tmp_path, cache=blocked)
    assert len(made.bank) == 18


def test_class_names_from_files(tmp_path):
    text = tmp_path / "names.txt"
    text.write_text("# classes\ncrane\n\n  great  white shark \ncrane\nCD/DVD player\n", encoding="utf-8-sig")
    assert read_class_names(text) == ["crane", "great white shark", "crane", "CD/DVD player"]
    listed = tmp_path / "names.json"
    listed.write_text('["a/b", "#c"]')
    assert read_class_names(listed) == ["a/b", "#c"]
    for name, content, message in (
        ("empty.txt", b"# none\n", "no class name"),
        ("bad.txt", b"\xff\xfe", "not UTF-8"),
        ("bad.json", b"{", "not JSON"),
        ("object.json", b"{}", "list of class names"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_class_names(tmp_path / name)
    with pytest.raises(InputError, match="Could not read"):
        read_class_names(Path(tmp_path / "missing.txt"))


def test_the_server_knows_what_the_tests_think(server):
    assert set(CLASSES) == set(KNOWLEDGE)
