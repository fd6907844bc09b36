"""What several APIs' requests and responses have in common. Unknown fields are accepted everywhere."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from octavo.core.params import MAX_COMPLETIONS, REPETITION_PENALTIES

INT64 = 2**63


class Open(BaseModel):
    """Takes fields that it does not know, as clients of other servers send them."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


def described(default: Any = None, description: str | None = None, **limits: Any) -> Any:
    """A field whose limits stand in the description (as JSON schema has them) and are checked by SamplingParams, whose
    errors say more."""
    return Field(default, description=description, json_schema_extra=limits)


class Closed(BaseModel):
    """A response: exactly these fields."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorInfo(Closed):
    message: str
    type: str
    param: str | None = None
    code: int | str | None = None


class ErrorResponse(Closed):
    error: ErrorInfo


class SamplingFields(Open):
    """How tokens are chosen. What is left out takes the model's own default (generation_config.json), then octavo's."""

    temperature: float | None = described(None, "0 is greedy.", minimum=0, maximum=2)
    top_p: float | None = described(exclusiveMinimum=0, maximum=1)
    top_k: int | None = described(None, "Keep this many tokens; 0 or -1 keeps all.", minimum=-1, maximum=INT64 - 1)
    min_p: float | None = described(minimum=0, maximum=1)
    presence_penalty: float | None = described(minimum=-2, maximum=2)
    frequency_penalty: float | None = described(minimum=-2, maximum=2)
    repetition_penalty: float | None = described(minimum=REPETITION_PENALTIES[0], maximum=REPETITION_PENALTIES[1])
    seed: int | None = described(minimum=-INT64, maximum=INT64 - 1)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int | None = described(minimum=0, maximum=INT64 - 1)
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    logit_bias: dict[str, float] | None = Field(None, description="Token id to what its logit gains, -100 to 100.")
    allowed_token_ids: list[int] | None = Field(None, description="No other tokens.")
    bad_words: list[str] | None = Field(None, description="Texts that the answer does not have.")
    best_of: int | None = described(
        None, "Make this many, answer with the n likeliest. Not with stream.", minimum=1, maximum=MAX_COMPLETIONS
    )
    use_beam_search: bool | None = Field(None, description="With best_of (or n) beams. Not with stream.")
    length_penalty: float | None = Field(None, description="Beams are ranked by log-probability / length ** this.")
    early_stopping: bool | None = Field(None, description="Of beam search: end with the first n finished beams.")
    logprob_token_ids: list[int] | None = Field(None, description="Log-probabilities of these too, with logprobs.")
    logprobs_mode: Literal["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"] | None = None
    thinking_token_budget: int | None = described(
        None, "Thoughts are brought to their end after this many tokens; -1: never.", minimum=-1
    )
    repetition_detection: dict[str, int] | None = Field(
        None, description="Ends an answer that repeats itself: max_pattern_size, min_pattern_size and min_count."
    )
    stream_interval: int | None = described(None, "Tokens in each chunk of a stream but the first.", minimum=1)
    trace_decode_token_ids: list[int] | None = Field(None, description="The answer; for its log-probabilities.")
    skip_reading_prefix_cache: bool | None = None
    logits_processors: list[dict[str, Any]] | None = Field(
        None, description="Registered ones: [{name, arguments}], see --request-logits-processors."
    )
    vllm_xargs: dict[str, Any] | None = Field(None, description="For the engine's own logits processors.")
    structured_outputs: dict[str, Any] | None = Field(
        default=None,
        description="The form of the answer: one of json (a schema), regex, choice, grammar, json_object and "
        "structural_tag, with options of StructuredOutputsParams such as backend.",
    )


class PromptLogprobFields(Open):
    prompt_logprobs: int | None = described(
        None, "The most likely N tokens at each position of the prompt; -1: all. Not with stream.", minimum=-1
    )
    prompt_logprob_token_ids: list[int] | list[list[int]] | None = Field(
        None, description="Log-probabilities of these at each position of the prompt, or a list for each scored one."
    )
    prompt_logprob_start: int | None = described(
        None, "The first scored position: its row is of the token after it.", minimum=0, maximum=INT64 - 1
    )


class RequestFields(Open):
    """What is not about tokens."""

    model: str | None = Field(None, description="A name of /v1/models; left out, the first of them.")
    stream: bool | None = False
    user: str | None = None
    priority: int = Field(
        0, ge=-INT64, le=INT64 - 1, description="Lower goes first, with --scheduling-policy priority."
    )
    request_id: str | None = Field(None, description="Becomes part of the answer's id.")
    cache_salt: str | None = Field(
        None, min_length=1, max_length=1024, description="Requests with another salt share no cached prompts."
    )


class PromptFields(Open):
    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, le=INT64 - 1, description="Keep this many tokens of the prompt; -1: as many as the model takes."
    )
    truncation_side: Literal["left", "right"] | None = Field(None, description="Where tokens are dropped: left.")
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None


class StreamOptions(Open):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class PromptTokensDetails(Closed):
    cached_tokens: int | None = None


class CompletionTokensDetails(Closed):
    reasoning_tokens: int = 0


class Usage(Closed):
    prompt_tokens: int = 0
    total_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None


class PromptLogprob(Closed):
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


PromptLogprobs = list[dict[str, PromptLogprob] | None]  # by token of the prompt, then by token id


class FunctionDefinition(Open):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Open):
    type: Literal["function"] = "function"
    function: FunctionDefinition


class FunctionCall(Closed):
    name: str
    arguments: str


class ToolCall(Closed):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
