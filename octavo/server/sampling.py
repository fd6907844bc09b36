"""Request fields → SamplingParams. What octavo cannot do yet is refused by name, never passed over."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from octavo.core.params import RequestOutputKind, SamplingParams
from octavo.core.structured import StructuredOutputsParams
from octavo.errors import InvalidParameter, InvalidRequest, PromptTooLong
from octavo.server.output_parser import OutputParser, thinking_of
from octavo.server.protocol.fields import SamplingFields
from octavo.server.state import ServedModel

MAX_TEMPERATURE = 2.0

_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "min_tokens",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "best_of",
    "use_beam_search",
    "length_penalty",
    "early_stopping",
    "logprob_token_ids",
    "logprobs_mode",
    "thinking_token_budget",
    "repetition_detection",
    "stream_interval",
    "trace_decode_token_ids",
    "skip_reading_prefix_cache",
    "prompt_logprobs",
    "prompt_logprob_token_ids",
    "prompt_logprob_start",
    "logits_processors",
)

# Fields that change what is generated or answered, and that nothing here implements, or not in every API.
_UNSUPPORTED = frozenset(
    [
        "audio",
        "container",
        "conversation",
        "ec_transfer_params",
        "enable_response_messages",
        "function_call",
        "functions",
        "kv_transfer_params",
        "mcp_servers",
        "media_io_kwargs",
        "mm_payload",
        "mm_processor_kwargs",
        "modalities",
        "prediction",
        "previous_input_messages",
        "prompt_embeds",
        "prompt_logprob_token_ids",
        "prompt_logprobs",
        "return_mm_kwargs",
        "return_token_offsets",
        "return_weight_versions",
        "routed_experts_prompt_start",
        "watermarking",
        "web_search_options",
    ]
)
# Values that ask for nothing.
_NEUTRAL: dict[str, Any] = {
    "modalities": ["text"],
    "mm_payload": "tensors",
    "routed_experts_prompt_start": 0,
}


def refuse_unsupported(body: BaseModel) -> None:
    """Raises InvalidRequest for a field that would have an effect if octavo knew it."""
    for name, value in (body.model_extra or {}).items():
        if name in _UNSUPPORTED and not asks_for_nothing(value, _NEUTRAL.get(name)):
            raise not_supported(name)


def not_supported(field: str, detail: str = "") -> InvalidRequest:
    return InvalidRequest(f"{field} is not supported yet{detail}", field)


def asks_for_nothing(value: Any, neutral: Any = None) -> bool:
    return value is None or value is False or value in ("", [], {}) or (neutral is not None and value == neutral)


def make_params(
    body: SamplingFields,
    served: ServedModel,
    *,
    num_prompt_tokens: int,
    max_tokens: int | None,
    n: int | None = None,
    logprobs: int | None = None,
    stream: bool = False,
    parser: OutputParser | None = None,
    ends_in_reasoning: bool = False,
    form: StructuredOutputsParams | None = None,
) -> SamplingParams:
    """What a request asks for over the model's defaults over octavo's. `max_tokens` None: the model's default, else
    what the context has left. `parser` is one that will read the output, `ends_in_reasoning` whether the prompt has
    opened thoughts, `form` what form the output must have. Raises InvalidRequest."""
    given = {name: value for name in _FIELDS if (value := getattr(body, name, None)) is not None}
    for name in ("logit_bias", "bad_words", "logits_processors"):  # empty: asks for nothing
        if name in given and not given[name]:
            del given[name]
    if parser is not None and parser.needs_special_tokens:
        given["skip_special_tokens"] = False  # what it looks for are some; it takes them out
    if getattr(body, "vllm_xargs", None):
        if not served.engine.inputs.processors:
            raise not_supported("vllm_xargs", ": the engine has no logits processors of its own")
        given["extra_args"] = body.vllm_xargs
    if given.get("thinking_token_budget", -1) != -1:
        thinking = thinking_of(served.reasoning_parser, ends_in_reasoning)
        if thinking is None:
            raise InvalidRequest(
                "thinking_token_budget: how this model writes its thoughts is not known (name it with "
                "--reasoning-parser)",
                "thinking_token_budget",
            )
        given["thinking"] = thinking
    temperature = given.get("temperature")
    if temperature is not None and temperature > MAX_TEMPERATURE:
        raise InvalidParameter("temperature", temperature, f"from 0 to {MAX_TEMPERATURE:g}")
    limits = served.engine.inputs.limits
    room = limits.max_model_len - num_prompt_tokens
    if room < 1:
        reason = f"the context is {limits.max_model_len} tokens (max_model_len), and one must be left for the output"
        raise PromptTooLong(num_prompt_tokens, limits.max_model_len - 1, reason)
    defaults = served.sampling_defaults
    default_tokens = defaults.pop("max_tokens", None)
    if max_tokens is None and default_tokens is not None:
        max_tokens = max(1, min(default_tokens, room))
    elif max_tokens is not None and max_tokens > room:
        raise InvalidParameter(
            "max_tokens", max_tokens,
            f"at most {room} (the context of {limits.max_model_len} tokens less the prompt's {num_prompt_tokens})",
        )  # fmt: skip
    params = SamplingParams.from_dict(
        {
            **defaults,
            **given,
            "n": 1 if n is None else n,
            "max_tokens": max_tokens,
            "logprobs": logprobs,
            "detokenize": served.engine.inputs.tokenizer is not None,
            "output_kind": RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
            "structured_outputs": form,
        }
    )
    params.validate_for(limits.vocab_size, limits.max_logprobs)
    return params
