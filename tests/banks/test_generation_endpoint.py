"""The client against a real server in this process: every trouble of the protocol."""

import json
import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from chat_server import body, breaks, envelope, hangs, reply, running, says, status, trickles

from whylens.banks import Endpoint, EndpointError, LimitReachedError, Limits
from whylens.banks.generation_limits import Meter
from whylens.banks.generation_parsing import read_answer
from whylens.banks.generation_prompts import Message, class_messages, picture_messages
from whylens.errors import InputError

GOOD = '{"appearance": ["red fur"], "parts": [], "surroundings": []}'


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server():
    with running() as made:
        yield made


@pytest.fixture
def waits():
    return []


@pytest.fixture
def endpoint(server, waits):
    return Endpoint(server.url, "pretended", sleep=waits.append, timeout=5)


def ask(endpoint, meter=None, name="goldfish"):
    meter = meter or Meter(Limits())
    return endpoint.complete(class_messages(name, 10), answer_tokens=100, temperature=0.0, seed=0, meter=meter)


def test_a_good_answer(server, endpoint, monkeypatch):
    monkeypatch.setenv("MY_KEY", " secret-123 ")
    endpoint.key_env = "MY_KEY"
    meter = Meter(Limits())
    answer = ask(endpoint, meter)
    assert {item.phrase for item in read_answer(answer.text)} >= {"orange scales", "forked tail", "glass bowl"}
    assert (answer.question_tokens, answer.answer_tokens, answer.model) == (300, 60, "pretended-1")
    assert answer.structure == "json_schema"
    assert (meter.cost.calls, meter.cost.tokens, meter.cost.estimated_calls) == (1, 360, 0)
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["Authorization"] == "Bearer secret-123"
    request = server.requests[0]
    assert request["model"] == "pretended"
    assert request["max_tokens"] == 100
    assert request["response_format"]["json_schema"]["schema"]["required"] == ["appearance", "parts", "surroundings"]
    assert [m["role"] for m in request["messages"]] == ["system", "user"]


def test_pictures_travel_as_data_urls(server, endpoint):
    jpeg = b"\xff\xd8\xff\xe0picture"
    endpoint.complete(picture_messages(jpeg, 5), answer_tokens=50, temperature=0.0, seed=0, meter=Meter(Limits()))
    text, picture = server.requests[0]["messages"][-1]["content"]
    assert text["type"] == "text"
    assert picture["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/4")


def test_no_key_is_sent_where_none_is_named(server, endpoint):
    ask(endpoint)
    assert "Authorization" not in server.headers[0]


def test_retry_after_in_seconds_and_as_a_date(server, endpoint, waits):
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    server.troubles = [status(429, "slow down", Retry_After="7"), status(503, "busy", Retry_After=moment)]
    ask(endpoint)
    assert waits[0] == 7
    assert 20 < waits[1] <= 30
    assert len(server.requests) == 3


def test_growing_waits_without_retry_after(server, endpoint, waits):
    server.troubles = [status(500), status(502), status(429, Retry_After="soon")]
    ask(endpoint)
    assert waits == [1, 2, 4]


@pytest.mark.parametrize(
    "trouble",
    [
        body(b"{not json"),
        body({"choices": []}),
        body({"object": "list"}),
        body([1, 2]),
        body(json.dumps(envelope(GOOD)).encode(), length=100_000),
        breaks,
    ],
    ids=["malformed", "no choice", "no choices", "a list", "cut", "closed"],
)
def test_damaged_answers_are_asked_for_again(server, endpoint, waits, trouble):
    server.troubles = [trouble]
    assert read_answer(ask(endpoint).text)
    assert len(server.requests) == 2
    assert waits == [1]


@pytest.mark.parametrize("trouble", [hangs(0.8), trickles(0.9)], ids=["silent", "trickling"])
def test_time_outs_end_and_are_retried(server, endpoint, trouble):
    endpoint.timeout = 0.3
    server.troubles = [trouble]
    meter = Meter(Limits())
    assert read_answer(ask(endpoint, meter).text)
    # What the first call cost is unknown: its estimate is counted.
    assert meter.cost.calls == 2
    assert meter.cost.estimated_calls == 1
    assert meter.cost.tokens > 360 + 100


def test_tries_are_limited(server, endpoint, waits):
    endpoint.retries = 2
    server.troubles = [status(500, "broken")] * 5
    with pytest.raises(EndpointError, match=r"failed 3 times.*status 500: broken"):
        ask(endpoint)
    assert len(server.requests) == 3
    assert waits == [1, 2]


def test_a_wait_that_is_too_long_ends_the_run(server, endpoint, waits):
    server.troubles = [status(429, "daily quota", Retry_After="3600")]
    with pytest.raises(EndpointError, match=r"wait 3600 s.*answers so far are kept"):
        ask(endpoint)
    assert waits == []


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (status(401, "bad key secret-123"), r"status 401: bad key \*\*\*.*'MY_KEY' was refused"),
        (status(403, "no"), "may not use this model"),
        (status(404, "unknown model"), "unknown model.*base address"),
        (status(400, "bad question"), "status 400: bad question"),
        (status(429, "insufficient_quota"), "no credit left"),
        (body(b"<html>Sign in</html>", kind="text/html"), "text/html, not JSON: '<html>Sign in.*base address"),
        (status(307, "there", Location="http://127.0.0.1:1/v1"), "redirects to http://127.0.0.1:1/v1"),
    ],
    ids=["401", "403", "404", "400", "no credit", "html", "redirect"],
)
def test_troubles_that_would_come_again_are_not_retried(server, endpoint, waits, monkeypatch, trouble, message):
    monkeypatch.setenv("MY_KEY", "secret-123")
    endpoint.key_env = "MY_KEY"
    server.troubles = [trouble]
    with pytest.raises(EndpointError, match=message) as error:
        ask(endpoint)
    assert "secret-123" not in str(error.value)
    assert len(server.requests) == 1
    assert waits == []


def test_a_wrong_content_type_around_good_json_is_taken(server, endpoint):
    server.troubles = [body(envelope(GOOD), kind="text/plain")]
    assert ask(endpoint).text == GOOD


def test_a_refused_schema_is_given_up_step_by_step_and_remembered(server, endpoint):
    def refuse(handler, request):
        if request.get("response_format", {}).get("type") == "json_schema":
            reply(handler, 400, {"error": {"message": "response_format json_schema is not supported"}})
            return True
        if "response_format" in request:
            reply(handler, 422, {"detail": "unknown field response_format"})
            return True
        return False

    server.every = refuse
    assert ask(endpoint).structure == "text"
    assert [r.get("response_format", {}).get("type") for r in server.requests] == ["json_schema", "json_object", None]
    ask(endpoint)
    assert len(server.requests) == 4


def test_other_names_of_settings_are_learnt(server, endpoint):
    def refuse(handler, request):
        if "max_tokens" in request:
            reply(handler, 400, {"error": {"message": "Use 'max_completion_tokens' instead of 'max_tokens'."}})
        elif "temperature" in request:
            reply(handler, 400, {"error": {"message": "temperature 0 is not supported"}})
        else:
            return False
        return True

    server.every = refuse
    ask(endpoint)
    assert "max_completion_tokens" in server.requests[-1]
    assert "temperature" not in server.requests[-1]


def test_content_in_parts_and_missing_usage(server, endpoint):
    reply_body = envelope(GOOD, usage=False)
    reply_body["choices"][0]["message"]["content"] = [{"type": "text", "text": GOOD[:20]}, {"text": GOOD[20:]}]
    server.troubles = [body(reply_body)]
    meter = Meter(Limits())
    answer = ask(endpoint, meter)
    assert answer.text == GOOD
    assert answer.question_tokens is None
    assert meter.cost.estimated_calls == 1
    assert meter.cost.tokens > 100


def test_a_refusal_without_content_is_an_empty_answer(server, endpoint):
    refused = envelope("")
    refused["choices"][0]["message"] = {"role": "assistant", "content": None, "refusal": "I cannot"}
    server.troubles = [body(refused)]
    assert ask(endpoint).text == ""


def test_limits_hold_for_repeated_calls_too(server, endpoint):
    server.troubles = [status(500)] * 10
    with pytest.raises(LimitReachedError, match="2 calls"):
        ask(endpoint, Meter(Limits(calls=2)))
    assert len(server.requests) == 2
    with pytest.raises(LimitReachedError, match="150 tokens"):
        ask(endpoint, Meter(Limits(tokens=150)))
    assert len(server.requests) == 2


def test_nobody_there(waits):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = Endpoint(f"http://127.0.0.1:{port}/v1", "m", retries=1, sleep=waits.append)
    with pytest.raises(EndpointError, match=r"failed 2 times.*no connection"):
        ask(endpoint)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "ftp://x/v1"}, "no address of an endpoint"),
        ({"url": "localhost:8000"}, "no address of an endpoint"),
        ({"url": "https://user:pw@host/v1"}, "no user, password"),
        ({"url": "https://host/v1?key=1"}, "query"),
        ({"model": " "}, "name of a model"),
        ({"structure": "xml"}, "json_schema"),
        ({"timeout": 0}, "timeout"),
    ],
)
def test_settings_that_cannot_be_used(options, message):
    with pytest.raises(InputError, match=message):
        Endpoint(**{"url": "https://host/v1", "model": "m", **options})


@pytest.mark.parametrize(("value", "message"), [(None, "not set"), ("  ", "empty"), ("a\nb", "characters")])
def test_keys_that_cannot_be_used(server, endpoint, monkeypatch, value, message):
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    endpoint.key_env = "MY_KEY"
    with pytest.raises(InputError, match=message):
        ask(endpoint)
    assert server.requests == []


def test_addresses_are_brought_to_one_form():
    urls = {Endpoint(u, "m").url for u in ("https://h/v1", "https://h/v1/", "https://h/v1/chat/completions")}
    assert urls == {"https://h/v1"}


def test_messages_never_show_a_class_its_own_example():
    for name in ("lighthouse", "Lighthouse, beacon", "bicycle"):
        text = class_messages(name, 5)[1].text.split("For the category")[1]
        assert name.split(",")[0].lower() not in text.lower()
    assert isinstance(picture_messages(b"x", 3)[1], Message)


def test_says_helper_is_the_protocol(server, endpoint):
    server.troubles = [says(GOOD, finish="length")]
    assert ask(endpoint).finish == "length"
