"""Language models behind any OpenAI-compatible chat-completions endpoint, with nothing but the standard library.

Retried, with growing waits and the server's ``Retry-After`` honoured: 408, 409, 425, 429, 5xx, time-outs, connections that
break, bodies that are cut or damaged. Not retried, because it would fail again: a refused key, an unknown model or
address, a redirect, an answer that is no JSON by its content type. What a server does not know (a JSON schema, a
temperature, the name of the token limit) is left out and asked again.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from whylens import __version__
from whylens.banks.generation_cache import Answer
from whylens.banks.generation_limits import Meter, estimate_text, estimate_tokens
from whylens.banks.generation_prompts import SCHEMA, Message
from whylens.errors import InputError, WhylensError

RETRIED = frozenset({408, 409, 425, 429, *range(500, 600)}) - {501, 505}
STRUCTURES = ("json_schema", "json_object", "text")
MAX_BODY = 8 * 2**20
_READ = 2**16


class EndpointError(WhylensError):
    """An endpoint that did not answer as the protocol wants."""


class _TransientError(Exception):
    """A failure that another try may not meet: what happened, and how long the server asked to wait."""

    def __init__(self, what: str, wait: float | None = None) -> None:
        super().__init__(what)
        self.wait = wait


@dataclass(eq=False)
class Endpoint:
    """A model behind ``POST {url}/chat/completions``.

    Args:
        url: base address, such as ``"https://api.openai.com/v1"`` or ``"http://localhost:8000/v1"``.
        model: the model's name there.
        key_env: name of the environment variable that holds the key; None sends none. The key is read at the first call
            and is never written, shown or kept.
        timeout: seconds that one answer may take altogether.
        retries: further tries of one question after a failure that may pass.
        longest_wait: seconds; a server that asks to wait longer ends the run.
        structure: ``"json_schema"``, ``"json_object"`` or ``"text"``: the strictest form to ask for. One that the server
            refuses is replaced by the next.

    Raises:
        InputError: for an address or setting that cannot be used.
    """

    url: str
    model: str
    key_env: str | None = None
    timeout: float = 120.0
    retries: int = 4
    longest_wait: float = 120.0
    structure: str = "json_schema"
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _form: str = field(default="", init=False, repr=False)
    _limit_name: str = field(default="max_tokens", init=False, repr=False)
    _temperature: bool = field(default=True, init=False, repr=False)

    parallel = True

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(
                f"{self.url!r} is no address of an endpoint. Accepted: http:// or https:// with a host, usually ending "
                "in /v1."
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise InputError("The address of an endpoint must hold no user, password, query or fragment.")
        if not self.model.strip():
            raise InputError("The endpoint needs the name of a model.")
        if self.structure not in STRUCTURES:
            raise InputError(f"structure must be one of {', '.join(STRUCTURES)}; it is {self.structure!r}.")
        if self.timeout <= 0 or self.retries < 0 or self.longest_wait < 0:
            raise InputError("timeout must be positive; retries and longest_wait must not be negative.")
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        self.url = urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, "", ""))
        self._form = self.structure

    @property
    def identity(self) -> dict[str, Any]:
        """What tells its answers from those of another model."""
        return {"kind": "endpoint", "name": self.model, "url": self.url, "structure": self.structure}

    def complete(
        self, messages: Sequence[Message], *, answer_tokens: int, temperature: float, seed: int, meter: Meter
    ) -> Answer:
        """One answer.

        Args:
            messages: of the conversation.
            answer_tokens: longest answer.
            temperature: of the sampling, 0 for the likeliest answer.
            seed: not sent, since few servers know it.
            meter: admits and counts every request.

        Raises:
            InputError: where the key's variable is not set.
            LimitReachedError: when a limit does not allow the next request.
            EndpointError: when no usable answer came; the message says why.

        Cost: one request, and at most ``retries`` more after failures; up to four more in a run where the server
        refuses a form.
        """
        tries = 0
        while True:
            try:
                return self._ask(messages, answer_tokens, temperature, meter)
            except _TransientError as failure:
                tries += 1
                if tries > self.retries:
                    raise EndpointError(f"{self._name} failed {tries} times. The last time: {failure}") from None
                wait = min(2.0 ** (tries - 1), 60.0) if failure.wait is None else failure.wait
                if wait > self.longest_wait:
                    raise EndpointError(
                        f"{self._name} asks to wait {wait:.0f} s, longer than the {self.longest_wait:.0f} s allowed: "
                        f"{failure} Run the same again later; the answers so far are kept."
                    ) from None
                self.sleep(wait)

    @property
    def _name(self) -> str:
        return f"The endpoint {self.url} (model {self.model!r})"

    def _ask(self, messages: Sequence[Message], answer_tokens: int, temperature: float, meter: Meter) -> Answer:
        question = estimate_tokens(messages)
        while True:
            key = self._key()
            with self._lock:
                form, limit_name, with_temperature = self._form, self._limit_name, self._temperature
            body: dict[str, Any] = {
                "model": self.model,
                "messages": [_as_json(message) for message in messages],
                limit_name: answer_tokens,
            }
            if with_temperature:
                body["temperature"] = temperature
            if form == "json_schema":
                described = {"name": "phrases", "strict": True, "schema": SCHEMA}
                body["response_format"] = {"type": "json_schema", "json_schema": described}
            elif form == "json_object":
                body["response_format"] = {"type": "json_object"}
            reservation = meter.admit(question, answer_tokens)
            # What a failed request cost is unknown, unless the server said that it failed.
            spent = (question, answer_tokens)
            estimated = True
            try:
                status, headers, data = self._post(body, key)
                if status != 200:
                    spent, estimated = (0, 0), False
                    detail = _hide(_message_of(data), key)
                    if self._adapt(status, detail, form, limit_name, with_temperature):
                        continue
                    self._refuse(status, headers, detail)
                answer = self._answer(headers, data, form, key)
                known = answer.question_tokens is not None and answer.answer_tokens is not None
                spent = (
                    question if answer.question_tokens is None else answer.question_tokens,
                    estimate_text(answer.text) if answer.answer_tokens is None else answer.answer_tokens,
                )
                estimated = not known
                return answer
            finally:
                meter.settle(reservation, *spent, estimated=estimated)

    def _key(self) -> str | None:
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise InputError(
                f"The environment variable {self.key_env!r}, which should hold the endpoint's key, is "
                f"{'empty' if self.key_env in os.environ else 'not set'}."
            )
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            raise InputError(f"The key in the environment variable {self.key_env!r} has characters that no key has.")
        return key

    def _post(self, body: dict[str, Any], key: str | None) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and whole body of one request.

        Raises:
            _TransientError: for a time-out, a connection that failed or broke, a body that is cut or too long.
            EndpointError: for a host that does not exist or a certificate that is not trusted.
        """
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": f"whylens/{__version__}",
        }
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(body).encode(), headers)
        deadline = time.monotonic() + self.timeout
        late = f"no complete answer within {self.timeout:g} s (setting timeout)."
        try:
            try:
                response = _OPENER.open(request, timeout=self.timeout)
            except urllib.error.HTTPError as error:
                response = error
            with response:
                data = bytearray()
                # A server that sends a byte now and then would never time out by itself.
                while chunk := response.read1(_READ):
                    data += chunk
                    if time.monotonic() > deadline:
                        raise _TransientError(late)
                    if len(data) > MAX_BODY:
                        raise _TransientError(f"an answer of more than {MAX_BODY} bytes.")
                stated = response.headers.get("Content-Length", "")
                if stated.isdigit() and len(data) < int(stated):
                    raise _TransientError(f"the answer was cut: {len(data)} of {stated} bytes came.")
                return response.status or 0, response.headers, bytes(data)
        except TimeoutError:
            raise _TransientError(late) from None
        except urllib.error.URLError as error:
            reason = error.reason
            if isinstance(reason, TimeoutError):
                raise _TransientError(late) from None
            if type(reason).__name__ in ("gaierror", "SSLCertVerificationError"):
                raise EndpointError(f"{self._name} cannot be reached: {reason}.") from None
            raise _TransientError(f"no connection: {reason}.") from None
        except (http.client.HTTPException, OSError) as error:
            raise _TransientError(f"the connection broke: {type(error).__name__} {error}.") from None

    def _adapt(self, status: int, detail: str, form: str, limit_name: str, with_temperature: bool) -> bool:
        """Give up what the server says it does not know; True when asking again may help."""
        if status not in (400, 422, 501):
            return False
        said = detail.lower()
        with self._lock:
            if limit_name == "max_tokens" and "max_completion_tokens" in said:
                self._limit_name = "max_completion_tokens"
            elif with_temperature and "temperature" in said:
                self._temperature = False
            elif form != "text" and re.search(
                r"response_format|json_schema|json_object|schema|grammar|json mode", said
            ):
                self._form = STRUCTURES[STRUCTURES.index(form) + 1]
            else:
                return False
        return True

    def _refuse(self, status: int, headers: http.client.HTTPMessage, detail: str) -> None:
        said = f"status {status}{f': {detail}' if detail else ''}"
        if status == 429 and re.search(r"insufficient_quota|billing", detail):
            raise EndpointError(f"{self._name} has no credit left ({said}).")
        if status in RETRIED:
            raise _TransientError(f"{said}.", _retry_after(headers))
        hint = {
            401: f" The key in {self.key_env!r} was refused."
            if self.key_env
            else " It wants a key; name its variable.",
            403: " The key may not use this model.",
            404: " Is the base address right (it usually ends in /v1), and the model's name?",
            413: " Smaller pictures may help.",
        }.get(status, "")
        if 300 <= status < 400:
            hint = f" It redirects to {headers.get('Location', 'nowhere')}; give that address if you trust it."
        raise EndpointError(f"{self._name} refused the request ({said}).{hint}")

    def _answer(self, headers: http.client.HTTPMessage, data: bytes, form: str, key: str | None) -> Answer:
        try:
            content = json.loads(data)
        except (ValueError, RecursionError):
            kind = headers.get_content_type()
            start = _hide(data[:80].decode("utf-8", "replace"), key)
            if "json" not in kind:
                raise EndpointError(
                    f"{self._name} answered {kind}, not JSON: {start!r}. Is the base address right (it usually ends in "
                    "/v1)?"
                ) from None
            raise _TransientError(f"the answer is no JSON: {start!r}.") from None
        try:
            choice = content["choices"][0]
            text = _text_of(choice["message"])
            usage = content.get("usage") or {}
        except (KeyError, IndexError, TypeError, AttributeError):
            raise _TransientError(
                f"the answer has no choices[0].message: {_hide(_message_of(data), key)!r:.200}."
            ) from None
        return Answer(
            text=text,
            question_tokens=_count(usage, "prompt_tokens"),
            answer_tokens=_count(usage, "completion_tokens"),
            finish=choice.get("finish_reason") if isinstance(choice.get("finish_reason"), str) else None,
            model=content.get("model") if isinstance(content.get("model"), str) else None,
            structure=form,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host, and turn the question into a GET."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Follow none."""


# Proxies of the environment are honoured, as by every client of the standard library.
_OPENER = urllib.request.build_opener(_NoRedirect)


def _as_json(message: Message) -> dict[str, Any]:
    if message.picture is None:
        return {"role": message.role, "content": message.text}
    kind = "png" if message.picture.startswith(b"\x89PNG") else "jpeg"
    url = f"data:image/{kind};base64,{base64.b64encode(message.picture).decode('ascii')}"
    parts = [{"type": "text", "text": message.text}, {"type": "image_url", "image_url": {"url": url}}]
    return {"role": message.role, "content": parts}


def _text_of(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _message_of(data: bytes) -> str:
    """What an error body says, in short."""
    text = data[:4000].decode("utf-8", "replace")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, dict):
        inner = content.get("error", content)
        if isinstance(inner, dict):
            said = [str(inner[k]) for k in ("message", "detail", "code", "type") if isinstance(inner.get(k), str)]
            text = " / ".join(said) or json.dumps(inner)
        elif isinstance(inner, str):
            text = inner
    return " ".join(text.split())[:300].rstrip(".")


def _hide(text: str, key: str | None) -> str:
    return text.replace(key, "***") if key else text


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _retry_after(headers: http.client.HTTPMessage) -> float | None:
    value = (headers.get("Retry-After") or "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
