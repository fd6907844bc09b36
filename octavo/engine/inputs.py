"""Prompts as users give them → checked requests for the core. Text, token ids, dictionaries, chat messages.

Everything that is wrong with a request is found here, before the core hears of it.
"""

from __future__ import annotations

import difflib
import operator
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec

from octavo.core.messages import Submit
from octavo.core.params import RequestOutputKind, SamplingParams
from octavo.core.prompt_logprobs import check_prompt_logprobs
from octavo.engine.outputs import PreparedRequest
from octavo.errors import InvalidParameter, InvalidRequest, PromptTooLong
from octavo.sampling.processors import LogitsProcessor, validate
from octavo.tokenization.chat_template import render_chat
from octavo.tokenization.tokenizer import Tokenizer

Message = Mapping[str, Any]
_PROMPT_KEYS = ("prompt", "prompt_token_ids", "cache_salt")


class TextPrompt(TypedDict, total=False):
    """A prompt as a dictionary: `prompt` or `prompt_token_ids` is needed. Requests with another `cache_salt` share
    no cached blocks."""

    prompt: str
    prompt_token_ids: list[int]
    cache_salt: str


Prompt = str | Sequence[int] | TextPrompt | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PromptLimits:
    """What the model can take."""

    vocab_size: int
    max_model_len: int  # tokens, prompt and output together
    max_logprobs: int


class InputProcessor:
    """Makes requests. Has no state: any thread may use it."""

    def __init__(
        self,
        limits: PromptLimits,
        tokenizer: Tokenizer | None = None,
        eos_token_ids: Iterable[int] = (),
        chat_template: str | None = None,
        processors: Sequence[type[LogitsProcessor]] = (),
    ) -> None:
        self.limits, self.tokenizer, self.chat_template = limits, tokenizer, chat_template
        self.processors = processors  # the engine's own, which check their arguments
        self.eos_token_ids = sorted(set(eos_token_ids))

    @property
    def can_chat(self) -> bool:
        return self.tokenizer is not None and self.chat_template is not None

    def prepare(
        self,
        prompt: Prompt,
        params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
        add_special_tokens: bool = True,
    ) -> PreparedRequest:
        """Raises InvalidRequest. The core's ids are `request_id` with eight random digits behind it."""
        if not isinstance(params, SamplingParams):
            raise InvalidParameter("sampling_params", params, "a SamplingParams")
        if not isinstance(request_id, str) or not request_id:
            raise InvalidParameter("request_id", request_id, "a string that is not empty")
        if not isinstance(priority, int):
            raise InvalidParameter("priority", priority, "a whole number")
        text, token_ids, salt = self._read(prompt, add_special_tokens)
        params = self._with_bad_words(params)
        self._check_params(params)
        token_ids, text = self._truncate(token_ids, text, params)
        self._check_length(len(token_ids))
        check_prompt_logprobs(params, len(token_ids), self.limits.vocab_size)
        if params.max_tokens is None:
            params = msgspec.structs.replace(params, max_tokens=self.limits.max_model_len - len(token_ids))
        if params.use_beam_search or params.num_candidates > params.n:
            params = msgspec.structs.replace(params, output_kind=RequestOutputKind.FINAL_ONLY)
        core_id = f"{request_id}-{secrets.token_hex(4)}"
        arrival_time = time.monotonic()
        eos = [] if params.ignore_eos and params.structured_outputs is None else self.eos_token_ids
        submits = [
            Submit(child_id, token_ids, child_params, arrival_time, priority, salt, eos, child_params.seed)
            for child_id, child_params in _children(core_id, params)
        ]
        return PreparedRequest(request_id, text, token_ids, params, submits)

    def render(self, messages: Sequence[Message], chat_template: str | None = None, **settings: Any) -> str:
        """Chat messages as the text of a prompt, by the model's template or another; `settings` are those of
        `render_chat`. Encode it without special tokens: the template has written them. Raises InvalidRequest."""
        return render_chat(chat_template or self.chat_template, messages, self._text_tokenizer("messages"), **settings)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self._text_tokenizer("prompt").encode(text, add_special_tokens=add_special_tokens)

    def _text_tokenizer(self, field: str) -> Tokenizer:
        if self.tokenizer is None:
            raise InvalidRequest(
                f"{field} must be token ids: the engine runs without a tokenizer (skip_tokenizer_init)", field
            )
        return self.tokenizer

    def _read(self, prompt: Prompt, add_special_tokens: bool) -> tuple[str | None, list[int], str | None]:
        """(text if there is one, token ids, cache salt)"""
        salt: str | None = None
        text: Any = None
        token_ids: Any = None
        if isinstance(prompt, str):
            text = prompt
        elif isinstance(prompt, Mapping):
            for key in prompt:
                if key not in _PROMPT_KEYS:
                    raise InvalidRequest(f"a prompt has no field {key!r}{_did_you_mean(key, _PROMPT_KEYS)}", str(key))
            text, token_ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
            salt = prompt.get("cache_salt")
            if text is None and token_ids is None:
                raise InvalidRequest("a prompt needs one of prompt and prompt_token_ids", "prompt")
            if salt is not None and (not isinstance(salt, str) or not salt):
                raise InvalidParameter("cache_salt", salt, "a string that is not empty")
        elif hasattr(prompt, "__len__"):
            token_ids = prompt
        else:
            raise InvalidParameter("prompt", prompt, "a string, token ids or a dictionary")
        if text is not None and not isinstance(text, str):
            raise InvalidParameter("prompt", text, "a string")
        if token_ids is None:
            if not text:
                raise InvalidRequest("prompt must not be empty", "prompt")
            return text, self.encode(text, add_special_tokens), salt
        return text, check_token_ids(token_ids, self.limits.vocab_size), salt

    def _check_length(self, num_tokens: int) -> None:
        limit = self.limits.max_model_len - 1
        if num_tokens == 0:
            raise InvalidRequest("prompt must not be empty: it has no tokens", "prompt")
        if num_tokens > limit:
            reason = f"the context is {limit + 1} tokens (max_model_len), and one of them must be left for the output"
            raise PromptTooLong(num_tokens, limit, reason)

    def _with_bad_words(self, params: SamplingParams) -> SamplingParams:
        """`bad_words` as tokens, behind those given as such. A word is meant at the beginning of a text and within it:
        with a space before it, it may have another first token."""
        if not params.bad_words:
            return params
        tokenizer = self._text_tokenizer("bad_words")
        found = list(params.bad_words_token_ids or ())
        for i, word in enumerate(params.bad_words):
            plain, spaced = (tokenizer.encode(before + word.lstrip(), add_special_tokens=False) for before in ("", " "))
            if not plain:
                raise InvalidParameter(f"bad_words[{i}]", word, "a text that has tokens")
            forms = [plain, spaced] if len(spaced) == len(plain) and spaced[0] != plain[0] else [plain]
            found += forms
            if max(map(max, forms)) >= self.limits.vocab_size:
                limit = f"made of tokens below the vocabulary size {self.limits.vocab_size}"
                raise InvalidParameter(f"bad_words[{i}]", word, limit)
        return msgspec.structs.replace(params, bad_words_token_ids=found)

    def _truncate(self, token_ids: list[int], text: str | None, params: SamplingParams) -> tuple[list[int], str | None]:
        """The prompt as `truncate_prompt_tokens` has it, and its text."""
        kept = truncated(
            token_ids,
            params.truncate_prompt_tokens,
            params.truncation_side,
            self.limits.max_model_len,
            params.max_tokens,
        )
        if len(kept) == len(token_ids):
            return token_ids, text
        return kept, None if self.tokenizer is None else self.tokenizer.decode(kept, skip_special_tokens=False)

    def _check_params(self, params: SamplingParams) -> None:
        params.validate_for(self.limits.vocab_size, self.limits.max_logprobs)
        validate(self.processors, params)
        if params.stop and self.tokenizer is None:
            raise InvalidRequest(
                "stop strings need a tokenizer, and the engine runs without one (skip_tokenizer_init)", "stop"
            )


def truncated(
    token_ids: list[int], keep: int | None, side: str | None, max_model_len: int, max_tokens: int | None
) -> list[int]:
    """The last `keep` tokens, or the first where `side` is right. -1: as many as leave `max_tokens` of the context."""
    if keep == -1:
        keep = max(1, max_model_len - max(1, max_tokens or 1))
    if keep is None or len(token_ids) <= keep:
        return token_ids
    return token_ids[:keep] if side == "right" else token_ids[-keep:]


def split_prompts(prompts: Any) -> list[Prompt]:
    """One prompt, or a sequence of them, as a list. A sequence of numbers is one prompt; an empty one is none."""
    if isinstance(prompts, str | Mapping) or is_token_ids(prompts):
        return [prompts]
    if isinstance(prompts, Sequence) or hasattr(prompts, "__iter__"):
        return list(prompts)
    raise InvalidParameter("prompts", prompts, "a string, token ids, a dictionary, or a list of these")


def is_token_ids(value: Any) -> bool:
    """A flat sequence (list, tuple, array) whose first entry is a number."""
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__len__") or not hasattr(value, "__getitem__"):
        return False
    return len(value) > 0 and (hasattr(value[0], "__index__") or isinstance(value[0], float | bool))


def check_token_ids(token_ids: Any, vocab_size: int) -> list[int]:
    """The ids as a list of int. Raises InvalidRequest that names the position of the first bad one."""
    if hasattr(token_ids, "tolist"):  # arrays
        token_ids = token_ids.tolist()
    if isinstance(token_ids, str | bytes) or not isinstance(token_ids, Sequence):
        raise InvalidParameter("prompt_token_ids", token_ids, "a list of token ids")
    if not token_ids:
        raise InvalidRequest("prompt must not be empty: it has no tokens", "prompt_token_ids")
    ids = list(token_ids)
    if set(map(type, ids)) != {int}:
        for position, token_id in enumerate(ids):
            if isinstance(token_id, bool) or not hasattr(token_id, "__index__"):
                raise InvalidParameter(f"prompt_token_ids[{position}]", token_id, "a whole number")
            ids[position] = operator.index(token_id)
    if min(ids) < 0 or max(ids) >= vocab_size:
        position = next(i for i, token_id in enumerate(ids) if not 0 <= token_id < vocab_size)
        limit = f"between 0 and {vocab_size - 1}, the model's vocabulary"
        raise InvalidParameter(f"prompt_token_ids[{position}]", ids[position], limit)
    return ids


def split_conversations(messages: Any) -> list[Sequence[Message]]:
    """One conversation, or a list of them, as a list."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        limit = 'a list of messages such as {"role": "user", "content": "Hi"}, or a list of such lists'
        raise InvalidParameter("messages", messages, limit)
    if messages and all(isinstance(entry, list | tuple) for entry in messages):
        return list(messages)
    return [messages]


def match_params(params: Any, count: int, default: SamplingParams) -> list[SamplingParams]:
    """`params` for each of `count` prompts: none, one for all, or as many."""
    if params is None:
        return [default] * count
    if isinstance(params, SamplingParams):
        return [params] * count
    if isinstance(params, str | Mapping) or not isinstance(params, Sequence):
        raise InvalidParameter("sampling_params", params, "a SamplingParams or a list of them")
    if len(params) != count:
        raise InvalidRequest(f"sampling_params has {len(params)} entries for {count} prompts", "sampling_params")
    return list(params)


def match_priorities(priority: Any, count: int) -> list[int]:
    """One priority for each of `count` prompts; unset is 0 for all."""
    if priority is None:
        return [0] * count
    if isinstance(priority, str) or not isinstance(priority, Sequence):
        raise InvalidParameter("priority", priority, "a list of whole numbers, one for each prompt")
    if len(priority) != count:
        raise InvalidRequest(f"priority has {len(priority)} entries for {count} prompts", "priority")
    return list(priority)


def _children(core_id: str, params: SamplingParams) -> list[tuple[str, SamplingParams]]:
    """The completions that a request makes, each a request of its own for the core. They share the prompt in the cache,
    and the first brings its log-probabilities for all. A beam search is one."""
    if params.num_candidates == 1 or params.use_beam_search:
        return [(core_id, params)]
    seed, logprobs, mode = params.seed, params.logprobs, params.logprobs_mode
    if params.num_candidates > params.n and logprobs is None and not params.logprob_token_ids:
        logprobs, mode = 0, "raw_logprobs"  # they are ranked by it
    others = msgspec.structs.replace(params, prompt_logprobs=None, prompt_logprob_token_ids=None)
    return [
        (
            f"{i}_{core_id}",
            msgspec.structs.replace(
                others if i else params,
                n=1,
                best_of=None,
                seed=None if seed is None else seed + i,
                logprobs=logprobs,
                logprobs_mode=mode,
            ),
        )
        for i in range(params.num_candidates)
    ]


def _did_you_mean(word: Any, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(str(word), known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
