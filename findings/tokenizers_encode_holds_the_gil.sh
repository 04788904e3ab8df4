#!/usr/bin/env bash
# tokenizers 0.23.3: `Tokenizer.encode(text)` holds the interpreter's lock for as long as it takes, so every other Python
# thread stands still (a server that tokenises "in a thread" does not answer meanwhile); `encode_batch([text])`, with the
# same ids, releases it. Expected: both release it, since both are one call into Rust with nothing of Python in it.
#
# Seen, two million characters, a thread that wakes every millisecond:
#   encode        2.8 s, the other thread stood still for 2.8 s of them
#   encode_batch  3.2 s, the other thread stood still for 0.013 s at most
#
# Exits with 0 while that is so, with 1 when `encode` lets others run or `encode_batch` no longer does.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PY'
import threading
import time

import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers

alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
TEXT = "the quick brown fox " * 100_000


def longest_wait(call):
    """The result of `call`, how long it took, and the longest that another thread stood still meanwhile, seconds."""
    over, waits = threading.Event(), []

    def tick():
        last = time.perf_counter()
        while not over.is_set():
            time.sleep(0.001)
            waits.append(time.perf_counter() - last)
            last = time.perf_counter()

    thread = threading.Thread(target=tick)
    thread.start()
    time.sleep(0.1)
    start = time.perf_counter()
    result = call()
    took = time.perf_counter() - start
    over.set()
    thread.join()
    return result, took, max(waits)


one, one_took, one_wait = longest_wait(lambda: tokenizer.encode(TEXT))
[batch], batch_took, batch_wait = longest_wait(lambda: tokenizer.encode_batch([TEXT]))
print(f"tokenizers {tokenizers.__version__}, {len(TEXT)} characters, same ids: {one.ids == batch.ids}")
print(f"encode        {one_took:.2f} s, another thread stood still for {one_wait:.3f} s")
print(f"encode_batch  {batch_took:.2f} s, another thread stood still for {batch_wait:.3f} s")
same = one.ids == batch.ids and one_wait > 0.9 * one_took and batch_wait < 0.3 * batch_took
raise SystemExit(0 if same else 1)
PY
