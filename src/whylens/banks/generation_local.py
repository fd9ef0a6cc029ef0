"""Language models and vision-language models that run on this machine, through transformers."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from whylens.banks.generation_cache import Answer
from whylens.banks.generation_limits import Meter, estimate_tokens
from whylens.banks.generation_prompts import Message
from whylens.canonical import content_hash
from whylens.errors import InputError, ModelError, missing_extra
from whylens.randomness import derive_seed

_CHUNK = 2**22


@dataclass(eq=False)
class LocalModel:
    """A transformers model: a folder, or a name of the Hugging Face hub whose files are at hand.

    It is loaded at the first question, so that kept answers need neither the model nor transformers.

    Args:
        source: a folder that ``save_pretrained`` wrote (weights with tokenizer or processor), or a hub name.
        vision: whether it takes pictures (``image-text-to-text``) rather than text alone (``text-generation``).
        device: where it runs; CUDA where there is one, else the CPU, by default.
        dtype: of its weights, such as ``"bfloat16"``; as stored by default.
        revision: of a hub name.

    Raises:
        InputError: for an empty source.
    """

    source: str | os.PathLike[str]
    vision: bool = False
    device: str | torch.device | None = None
    dtype: str | None = None
    revision: str | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _loaded: Any = field(default=None, init=False, repr=False)
    _identity: dict[str, Any] | None = field(default=None, init=False, repr=False)

    parallel = False

    def __post_init__(self) -> None:
        if not os.fspath(self.source).strip():
            raise InputError("A local model needs a folder or a name.")

    @property
    def identity(self) -> dict[str, Any]:
        """What tells its answers from those of another model; a folder is known by the content of its files."""
        if self._identity is None:
            folder = Path(self.source)
            made: dict[str, Any] = {"kind": "transformers", "vision": self.vision, "dtype": self.dtype}
            if folder.is_dir():
                made |= {"name": folder.resolve().name, "sha256": _folder_hash(folder)}
            else:
                made |= {"name": os.fspath(self.source), "revision": self.revision}
            self._identity = made
        return dict(self._identity)

    def complete(
        self, messages: Sequence[Message], *, answer_tokens: int, temperature: float, seed: int, meter: Meter
    ) -> Answer:
        """One answer; drawn from (seed, messages), so that it does not depend on what was asked before.

        Args:
            messages: of the conversation.
            answer_tokens: longest answer.
            temperature: of the sampling, 0 for the likeliest answer.
            seed: of the sampling.
            meter: admits and counts the call.

        Raises:
            InputError: for a picture where the model takes none, or a question longer than its context.
            LimitReachedError: when a limit does not allow the call.
            MissingExtraError: when transformers is not installed.
            ModelError: when the model cannot be loaded.

        Cost: one pass of the model a token.
        """
        if not self.vision and any(message.picture is not None for message in messages):
            raise InputError(f"{self.source} was loaded for text alone; vision=True takes pictures.")
        reservation = meter.admit(estimate_tokens(messages), answer_tokens)
        asked = made = 0
        estimated = True
        try:
            with self._lock:
                model, reader = self._load()
                inputs = self._inputs(reader, messages).to(model.device)
                asked = int(inputs["input_ids"].shape[1])
                context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
                if context is not None and asked + answer_tokens > context:
                    raise InputError(
                        f"The question has {asked} tokens and its answer may have {answer_tokens}; {self.source} reads "
                        f"{context} together. Ask for fewer phrases or shorter answers."
                    )
                tokens = _generate(model, inputs, answer_tokens, temperature, _seed_of(seed, messages))[asked:]
            made, estimated = len(tokens), False
            decoder = getattr(reader, "tokenizer", reader)
            return Answer(
                text=decoder.decode(tokens, skip_special_tokens=True),
                question_tokens=asked,
                answer_tokens=made,
                finish="length" if made >= answer_tokens else "stop",
                model=self.identity["name"],
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            )
        finally:
            meter.settle(reservation, asked, made, estimated=estimated)

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            try:
                import transformers
            except ImportError as error:
                raise missing_extra("transformers", "hf", "Generating a bank with a local model") from error
            source = os.fspath(self.source)
            kinds = ("AutoModelForImageTextToText", "AutoProcessor") if self.vision else _TEXT_KINDS
            options = {} if self.revision is None else {"revision": self.revision}
            weights: dict[str, Any] = {} if self.dtype is None else {"torch_dtype": getattr(torch, self.dtype, None)}
            try:
                reader = getattr(transformers, kinds[1]).from_pretrained(source, **options)
                model = getattr(transformers, kinds[0]).from_pretrained(source, **options, **weights)
            except (OSError, ValueError, AttributeError, KeyError) as error:
                raise ModelError(
                    f"The local model {source!r} could not be loaded: {str(error).splitlines()[0]:.300}"
                ) from error
            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            self._loaded = (model.to(device).eval().requires_grad_(False), reader)
        return self._loaded

    def _inputs(self, reader: Any, messages: Sequence[Message]) -> Any:
        tokenizer = getattr(reader, "tokenizer", reader)
        pictures = [Image.open(io.BytesIO(m.picture)).convert("RGB") for m in messages if m.picture is not None]
        if getattr(reader, "chat_template", None) or getattr(tokenizer, "chat_template", None):
            talk = [{"role": m.role, "content": _content(m) if self.vision else m.text} for m in messages]
            text = reader.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        else:
            mark = f"{getattr(reader, 'image_token', '<image>')}\n"
            text = "\n\n".join((mark if m.picture is not None else "") + m.text for m in messages) + "\n\nAnswer:\n"
        if self.vision:
            return reader(text=text, images=pictures or None, return_tensors="pt")
        # A chat template has written the special tokens already.
        special = not getattr(tokenizer, "chat_template", None)
        return tokenizer(text, return_tensors="pt", add_special_tokens=special, return_token_type_ids=False)


_TEXT_KINDS = ("AutoModelForCausalLM", "AutoTokenizer")


def _generate(model: Any, inputs: Any, answer_tokens: int, temperature: float, seed: int) -> torch.Tensor:
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": float(temperature)}
    # transformers draws from the global generators only.
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        tokens: torch.Tensor = model.generate(**inputs, max_new_tokens=answer_tokens, **sampling)
    return tokens[0].cpu()


def _content(message: Message) -> list[dict[str, str]]:
    picture = [{"type": "image"}] if message.picture is not None else []
    return [*picture, {"type": "text", "text": message.text}]


def _seed_of(seed: int, messages: Sequence[Message]) -> int:
    parts = [content_hash(m.role, m.text, m.picture or b"") for m in messages]
    return derive_seed(seed, "local model", *parts)


def _folder_hash(folder: Path) -> str:
    """sha256 over names and contents of the model's files."""
    import hashlib

    parts: list[str] = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while data := file.read(_CHUNK):
                digest.update(data)
        parts += [path.relative_to(folder).as_posix(), digest.hexdigest()]
    return content_hash(*parts)
