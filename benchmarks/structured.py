"""What grammar masks cost: microseconds a step for a batch of requests, by backend and form. Prints JSON.

    python -m benchmarks.structured [--batch 256] [--vocabulary 128000] [--backends llguidance,xgrammar] [--steps 20]

The vocabulary is made up (all bytes, then pieces of words as byte-level BPE has them), the outputs are random among
what the masks allow. `compile_ms` is what the first request with a form waits, `mask_us` what a step waits for all rows
of the batch together, `accept_us` the same for following the tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from typing import Any

import numpy as np

from octavo.core.structured import AUTO_ORDER, StructuredOutputsParams
from octavo.errors import InvalidRequest
from octavo.structured.compile import Compiled, Compiler
from octavo.structured.vocabulary import Vocabulary

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "role": {"enum": ["admin", "user", "guest"]},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
            "required": ["street", "city"],
            "additionalProperties": False,
        },
        "active": {"type": "boolean"},
    },
    "required": ["name", "role", "address", "active"],
    "additionalProperties": False,
}
FORMS: dict[str, dict[str, Any]] = {
    "json schema": {"json": PERSON},
    "any json object": {"json_object": True},
    "regex": {"regex": r"[A-Z][a-z]{2,20}, [0-9]{4}-[0-9]{2}-[0-9]{2}"},
    "choice": {"choice": [f"answer {i}" for i in range(100)]},
}


def made_up_vocabulary(size: int) -> Vocabulary:
    chance = random.Random(0)
    syllables = ["".join(chance.choices("aeioubcdfghlmnprst", k=chance.randint(1, 4))) for _ in range(2000)]
    pieces: dict[bytes, None] = dict.fromkeys(bytes([byte]) for byte in range(256))
    for text in ('{"', '":', '",', '"}', "}}", ': "', '", "', " {", "[]", "\n\n", "  ", "    "):
        pieces[text.encode()] = None
    while len(pieces) < size - 2:
        word = "".join(chance.choices(syllables, k=chance.randint(1, 3)))
        word = chance.choice(("", " ")) + (word.capitalize() if chance.random() < 0.2 else word)
        if chance.random() < 0.05:
            word = chance.choice(("é", "你", "ß", "1", "27", "_")) + word
        pieces[word.encode()] = None
    return Vocabulary(size, [*pieces, b"<end>", b""], frozenset([size - 2]), (size - 2,))


def measure(compiled: Compiled, vocabulary: Vocabulary, batch: int, steps: int) -> dict[str, float]:
    chance = np.random.default_rng(0)
    matchers: list[Any] = [compiled.grammar.matcher() for _ in range(batch)]
    bits = np.zeros((batch, vocabulary.num_words), dtype=np.int32)
    (end,) = vocabulary.eos_token_ids
    fill_all = getattr(compiled.backend, "fill_all", None)
    masks, accepts = [], []
    for _ in range(steps):
        before = time.perf_counter()
        if fill_all is not None:
            fill_all([(matcher, row) for row, matcher in enumerate(matchers)], bits)
        else:
            for row, matcher in enumerate(matchers):
                matcher.fill(bits, row)
        masks.append(time.perf_counter() - before)
        chosen = []
        for row in range(batch):
            allowed = np.flatnonzero(np.unpackbits(bits[row].view(np.uint8), bitorder="little")[: vocabulary.size])
            chosen.append(int(chance.choice(allowed)))
        before = time.perf_counter()
        for row, token_id in enumerate(chosen):
            if token_id == end:
                matchers[row] = compiled.grammar.matcher()  # the next request
            else:
                matchers[row].accept((token_id,))
        accepts.append(time.perf_counter() - before)
    return {
        "mask_us": round(statistics.median(masks) * 1e6, 1),
        "mask_worst_us": round(max(masks) * 1e6, 1),
        "accept_us": round(statistics.median(accepts) * 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=128_000)
    parser.add_argument("--backends", default=",".join(AUTO_ORDER))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0, help="most that one backend and form may take")
    arguments = parser.parse_args()
    vocabulary = made_up_vocabulary(arguments.vocabulary)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    compiler = Compiler(lambda: vocabulary, threads)
    rows = []
    try:
        for backend in arguments.backends.split(","):
            form = StructuredOutputsParams(choice=["begin"])  # loads the library
            compiler.compile(form, (backend,)).exception()
            for name, fields in FORMS.items():
                row: dict[str, Any] = {"backend": backend, "form": name}
                before = time.perf_counter()
                try:
                    compiled = compiler.compile(StructuredOutputsParams(**fields), (backend,)).result()
                except InvalidRequest as error:
                    row["refused"] = str(error)
                else:
                    row["compile_ms"] = round((time.perf_counter() - before) * 1e3, 1)
                    once = measure(compiled, vocabulary, 1, 3)["mask_us"] * arguments.batch / 1e6
                    steps = max(2, min(arguments.steps, int(arguments.seconds / max(once, 1e-6))))
                    row |= {"steps": steps, **measure(compiled, vocabulary, arguments.batch, steps)}
                rows.append(row)
    finally:
        compiler.shutdown()
    about = {"batch": arguments.batch, "vocabulary": arguments.vocabulary, "threads": threads}
    print(json.dumps({**about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
