"""`make fuzz MINUTES=10 [ARGS="--target chat_stream"]`: the targets under coverage guidance, in turns.

Guided by atheris (libFuzzer) where it is installed (`pip install farebox[fuzz]`, Linux), by chance where it is not.
What was reached stays in .artifacts/fuzz/, and an input that breaks a target is written there and named.
"""

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

CORPUS = Path(".artifacts") / "fuzz"
INPUT_BYTES_MAX = 4_096
# Words of the formats, which chance would not spell.
CRUMBS = (
    b"data: ", b"data", b"event: ", b"\n\n", b"\r\n\r\n", b"\r", b"\xef\xbb\xbf", b'"usage":', b'"x_groq":', b"null",
    b'{"prompt_tokens":1}', b'"choices":[]', b"[DONE]", b'"error":', b"\\", b'\\"', b"\\u0022", b"\\ud800", b'{"a":[',
    b'"model":"x"', b'"n":1', b'"messages":[', b'"stream":true', b'"max_tokens":1', b'"content":"', b'"tools":[', b"]}",
    b"\r\n--b0\r\n", b"--b0--", b'Content-Disposition: form-data; name="a"\r\n\r\n', b'; filename="a"', b"OggS\0",
    b"moov", b"RIFF", b"WAVEfmt ", b"\x1a\x45\xdf\xa3", b"\xff\xfb\x94\x00", b"\xff\xff\xff\xff",
)  # fmt: skip
# Less than 256 bytes, so that a cut falls between any two of them.
SHORT = (
    b'data: {"choices":[{"delta":{"content":"a"}}]}\r\n\r\n: x\r\n\r\ndata: {"choices":[],\r\n'
    b'data: "usage":{"prompt_tokens":3,"completion_tokens":1}}\r\n\r\ndata: [DONE]\r\n\r\n'
)
RECORDINGS = Path(__file__).parents[2] / "support" / "recordings"


def main() -> int:
    """0 where every target held, 1 otherwise."""
    given = _options()
    if given.child:
        _guided(given.child, given.seconds)
        return 0
    from tests.properties.fuzz.targets import TARGETS

    names = [given.target] if given.target else list(TARGETS)
    seconds = given.minutes * 60 / len(names)
    broken = [name for name in names if not _held(name, seconds, TARGETS[name])]
    print(f"{len(names) - len(broken)} of {len(names)} targets held" + "".join(f"; {name} broke" for name in broken))
    return 1 if broken else 0


def _held(name: str, seconds: float, target: Callable[[bytes], None]) -> bool:
    directory = CORPUS / name
    directory.mkdir(parents=True, exist_ok=True)
    seeds = seed_inputs()
    for number, seed in enumerate(seeds):
        (directory / f"seed_{number}").write_bytes(seed[:INPUT_BYTES_MAX])
    print(f"{name}: {seconds:.0f} s", flush=True)
    if find_spec("atheris") is not None:
        command = [sys.executable, "-m", "tests.properties.fuzz.run", "--child", name, "--seconds", f"{seconds:.0f}"]
        return subprocess.run(command, check=False, timeout=seconds + 120).returncode == 0
    return _by_chance(target, seeds, seconds, directory)


def seed_inputs() -> list[bytes]:
    """Recorded replies and plain requests, some with cuts before them."""
    from tests.properties.fuzz.media_targets import MEDIA_SEEDS
    from tests.properties.fuzz.targets import REQUESTS

    recorded = [path.read_bytes() for path in sorted(RECORDINGS.iterdir()) if path.suffix in (".sse", ".json")]
    tails = [data[-1_024:] for data in recorded]
    # What comes last elsewhere comes first: usage before events whose usage is null.
    events = [[part for part in data.split(b"\n\n") if part and b"[DONE]" not in part] for data in tails]
    backwards = [b"\n\n".join(reversed(parts)) + b"\n\n" for parts in events]
    cut = [b"\x03\x20\x80\xf0" + data for data in (*tails, *REQUESTS, *backwards)]
    whole = [b"\x00" + data for data in (*recorded, *backwards, b"{}", b"{ }", b"[]", b"")]
    return [*REQUESTS, *MEDIA_SEEDS, *cut, *whole, *(bytes((1, at)) + SHORT for at in range(256))]


def _guided(name: str, seconds: float) -> None:
    """In a process of its own, which libFuzzer ends."""
    atheris = import_module("atheris")
    with atheris.instrument_imports(include=["gateway"]):
        from tests.properties.fuzz.targets import TARGETS
    directory, words = CORPUS / name, CORPUS / "words"
    words.write_text("".join(f'"{_escaped(crumb)}"\n' for crumb in CRUMBS), encoding="ascii")
    arguments = [
        sys.argv[0],
        str(directory),
        f"-dict={words}",
        f"-max_total_time={seconds:.0f}",
        f"-max_len={INPUT_BYTES_MAX}",
        f"-artifact_prefix={directory}/broke_",
        "-timeout=10",
        "-rss_limit_mb=1024",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    atheris.Setup(arguments, TARGETS[name])
    atheris.Fuzz()


def _escaped(crumb: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in crumb)


def _by_chance(target: Callable[[bytes], None], seeds: list[bytes], seconds: float, directory: Path) -> bool:
    """Seeds with pieces of each other in them: no guidance, and still more than nothing."""
    chance = random.Random(7)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        data = bytearray(chance.choice(seeds)[:INPUT_BYTES_MAX])
        for _ in range(chance.randint(1, 6)):
            other = chance.choice(seeds)
            start = chance.randrange(len(other))
            at = chance.randrange(len(data) + 1)
            data[at : at + chance.randint(0, 20)] = other[start : start + chance.randint(0, 40)]
        try:
            target(bytes(data))
        except Exception as error:
            path = directory / "broke_by_chance"
            path.write_bytes(data)
            print(f"{path}: {error!r}")
            return False
    return True


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fuzz what reads bytes from outside.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--target")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
