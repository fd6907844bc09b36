"""POST /v1/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request, Response

from octavo.core.outputs import CompletionOutput, FlatLogprobs, PositionLogprobs, RequestOutput
from octavo.core.params import SamplingParams
from octavo.engine.inputs import split_prompts
from octavo.errors import InvalidParameter, InvalidRequest
from octavo.server.answer import TokenCounts
from octavo.server.chat import check_stream_options
from octavo.server.logprobs import (
    TokenNames,
    completion_logprobs,
    prompt_logprobs,
    refuse_prompt_logprobs_in_stream,
)
from octavo.server.merging import merge
from octavo.server.prompts import PreparedPrompt, prepare_ids, prepare_text, truncate
from octavo.server.protocol.completions import CompletionRequest, CompletionResponse
from octavo.server.routing import STREAMED, make_router
from octavo.server.sampling import make_params, not_supported, refuse_unsupported
from octavo.server.sse import DONE, answer_whole, data, open_stream
from octavo.server.state import ServedModel, ServerState, engine_id, public_id, served_model, state_of
from octavo.server.structured import form_of

router = make_router("completions")


@router.post("/v1/completions", response_model=CompletionResponse, responses=STREAMED)
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Continues one prompt or several."""
    state = state_of(request)
    job = await prepare(body, served_model(request), public_id(request, "cmpl-", body.request_id))
    if body.stream:
        has_form = job.params[0].structured_outputs is not None
        return await open_stream(chunks(job, state), state.options.sse_keep_alive_interval, has_form=has_form)
    return await answer_whole(request, complete(job, state))


@dataclass
class CompletionJob:
    """A checked request. Choice i of prompt p has the index p * n + i."""

    id: str
    model: str
    body: CompletionRequest
    served: ServedModel
    prompts: list[PreparedPrompt]
    params: list[SamplingParams]  # one for each prompt
    names: TokenNames
    is_echo: bool  # the prompt is all of the answer
    generates: bool  # False: what is known of the prompt is enough
    created: int = field(default_factory=lambda: int(time.time()))

    def generate(self) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        engine, sources = self.served.engine, []
        for prompt, params in zip(self.prompts, self.params, strict=True):
            self.served.log_request(self.id, prompt.text, prompt.token_ids, params)
            sources.append(
                engine.generate(
                    prompt.for_engine(self.body.cache_salt), params, engine_id(self.id), priority=self.body.priority
                )
            )
        return merge(sources)  # type: ignore[arg-type]

    def counts(self) -> TokenCounts:
        return TokenCounts(num_prompt=sum(len(prompt.token_ids) for prompt in self.prompts))

    def echo(self, prompt: PreparedPrompt) -> str:
        if not self.body.echo:
            return ""
        if prompt.text is None:
            prompt.text = self.served.engine.get_tokenizer().decode(prompt.token_ids, skip_special_tokens=False)
        return prompt.text

    @property
    def echoes_logprobs(self) -> bool:
        return bool(self.body.echo) and self.body.logprobs is not None

    def logprobs(
        self, completion: CompletionOutput, offset: int, echoed: Echoed | None = None
    ) -> tuple[dict[str, Any] | None, int]:
        """With `echoed`, that prompt's come first: then `offset` is of its beginning."""
        if self.body.logprobs is None:
            return None, offset
        positions: list[PositionLogprobs | None] = list(completion.logprobs or ())
        token_ids = completion.token_ids
        if echoed is not None:
            positions, token_ids = [*echoed.positions, *positions], [*echoed.token_ids, *token_ids]
        named = self.body.logprob_token_ids
        return completion_logprobs(positions, token_ids, self.body.logprobs, self.names, offset, named)


@dataclass
class Echoed:
    """A prompt whose log-probabilities go before those of the answer."""

    token_ids: list[int]
    positions: list[PositionLogprobs | None] | FlatLogprobs


async def prepare(body: CompletionRequest, served: ServedModel, answer_id: str) -> CompletionJob:
    """Raises InvalidRequest, ApiError."""
    model = served.name_for(body.model)
    _refuse(body)
    prompts = [
        await prepare_text(served, prompt, body.add_special_tokens)
        if isinstance(prompt, str)
        else prepare_ids(served, list(prompt))  # type: ignore[arg-type]
        for prompt in split_prompts(body.prompt)
    ]
    if not prompts:
        raise InvalidRequest("prompt must have at least one prompt, got none", "prompt")
    is_echo = bool(body.echo) and body.max_tokens == 0
    asked = body
    if body.echo and body.logprobs is not None and body.prompt_logprobs is None:
        asked = body.model_copy(update={"prompt_logprobs": body.logprobs})
    generates = not is_echo or asked.prompt_logprobs is not None or asked.prompt_logprob_token_ids is not None
    params = []
    format = None if body.response_format is None else body.response_format.model_dump(exclude_unset=True)
    form = form_of(body, format=format)
    for prompt in prompts:
        truncate(prompt, body, served, body.max_tokens)
        params.append(
            make_params(
                asked,
                served,
                num_prompt_tokens=len(prompt.token_ids),
                max_tokens=1 if is_echo else body.max_tokens,
                n=body.n,
                logprobs=body.logprobs,
                stream=bool(body.stream),
                ends_in_reasoning=prompt.ends_in_reasoning,
                form=form,
            )
        )
    as_ids = bool(body.return_tokens_as_token_ids or served.options.return_tokens_as_token_ids)
    names = TokenNames(served.engine.outputs.token_text, as_ids)
    return CompletionJob(answer_id, model, body, served, prompts, params, names, is_echo, generates)


def _refuse(body: CompletionRequest) -> None:
    refuse_unsupported(body)
    check_stream_options(body.stream, body.stream_options)
    if body.suffix:
        raise not_supported("suffix")
    refuse_prompt_logprobs_in_stream(body, body.stream)
    if body.max_tokens is not None and body.max_tokens < 1 and not (body.echo and body.max_tokens == 0):
        raise InvalidParameter("max_tokens", body.max_tokens, "at least 1 (0 with echo)")


async def complete(job: CompletionJob, state: ServerState) -> CompletionResponse:
    counts, finals = job.counts(), {}
    if job.generates:
        with state.active():
            async with aclosing(job.generate()) as outputs:
                async for position, output in outputs:
                    finals[position] = _without_output(output) if job.is_echo else output
    choices = []
    for position, prompt in enumerate(job.prompts):
        if job.generates:
            final = finals[position]
            counts.note(final)
        else:
            nothing = [_nothing(index) for index in range(job.body.n or 1)]
            final = RequestOutput(job.id, prompt.text, prompt.token_ids, nothing, True)
        of_prompt = prompt_logprobs(final, job.body.prompt_logprobs is not None)
        for completion in final.outputs:
            choices.append(_choice(job, position, prompt, completion, final) | of_prompt)
    return CompletionResponse.model_validate(
        {
            "id": job.id,
            "created": job.created,
            "model": job.model,
            "choices": choices,
            "usage": counts.openai(job.served.options.enable_prompt_tokens_details),
        }
    )


def _choice(
    job: CompletionJob, position: int, prompt: PreparedPrompt, completion: CompletionOutput, final: RequestOutput
) -> dict[str, Any]:
    echo, echoed = job.echo(prompt), None
    if job.echoes_logprobs and final.prompt_logprobs is not None:
        echoed = Echoed(prompt.token_ids, final.prompt_logprobs)
    wants_ids = job.body.return_token_ids
    return {
        "index": position * (job.body.n or 1) + completion.index,
        "text": echo + completion.text,
        "logprobs": job.logprobs(completion, 0 if echoed else len(echo), echoed)[0],
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
        "token_ids": completion.token_ids if wants_ids else None,
        "prompt_token_ids": prompt.token_ids if wants_ids else None,
    }


def _nothing(index: int) -> CompletionOutput:
    return CompletionOutput(index, "", [], finish_reason="length")


def _without_output(output: RequestOutput) -> RequestOutput:
    """Of a request that asked for its prompt alone: what was made beside it is dropped."""
    output.outputs = [_nothing(completion.index) for completion in output.outputs if completion.finished]
    return output


async def chunks(job: CompletionJob, state: ServerState) -> AsyncGenerator[bytes, None]:
    """The events of a stream."""
    options, counts = job.body.stream_options, job.counts()
    with_cached = job.served.options.enable_prompt_tokens_details
    wants_usage = job.served.options.enable_force_include_usage or bool(options and options.include_usage)
    usage_always = wants_usage and bool(options and options.continuous_usage_stats)
    offsets: dict[int, int] = {}  # of each choice that has begun: where the next token's text begins
    echoes: dict[int, Echoed] = {}  # by prompt: what every choice of it begins with, once that is known
    early: dict[int, list[CompletionOutput]] = {}  # by prompt: what came before

    def chunk(position: int, completion: CompletionOutput) -> bytes:
        index = position * (job.body.n or 1) + completion.index
        is_first = index not in offsets
        echo = job.echo(job.prompts[position]) if is_first else ""
        echoed = echoes.get(position) if is_first else None
        choice: dict[str, Any] = {"index": index, "text": echo + completion.text}
        start = offsets.get(index, 0 if echoed else len(echo))
        choice["logprobs"], offsets[index] = job.logprobs(completion, start, echoed)
        choice |= {"finish_reason": completion.finish_reason, "stop_reason": completion.stop_reason}
        if job.body.return_token_ids:
            choice["token_ids"] = completion.token_ids
            if is_first:
                choice["prompt_token_ids"] = job.prompts[position].token_ids
        content = _head(job, [choice])
        if wants_usage:
            content["usage"] = counts.openai(with_cached) if usage_always else None
        return data(content)

    with state.active():
        if job.generates:
            async with aclosing(job.generate()) as outputs:
                async for position, output in outputs:
                    output = _without_output(output) if job.is_echo else output
                    counts.note(output)
                    if output.prompt_logprobs is not None:
                        echoes[position] = Echoed(job.prompts[position].token_ids, output.prompt_logprobs)
                    if job.echoes_logprobs and position not in echoes:
                        early.setdefault(position, []).extend(output.outputs)
                        continue
                    made = [*early.pop(position, ()), *output.outputs]
                    yield b"".join([chunk(position, completion) for completion in made])
        else:
            for position in range(len(job.prompts)):
                yield b"".join([chunk(position, _nothing(index)) for index in range(job.body.n or 1)])
        end = data({**_head(job, []), "usage": counts.openai(with_cached)}) if wants_usage else b""
        yield end + DONE


def _head(job: CompletionJob, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": job.id,
        "object": "text_completion",
        "created": job.created,
        "model": job.model,
        "choices": choices,
    }
