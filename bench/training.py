"""Training beside TRL's trainers in one run: the same model, rows, order, batches, optimizer and first LoRA matrices.

    .venv/bin/python -m bench.training [--model FILE.gguf] [--rows 16] [--batch 8] [--rounds 3] [--methods sft dpo kto]

Rows are questions about Python's standard library with its own documentation as answers: 40 to 1,000 tokens, mean about 180.
Each contestant runs in a fresh process, in alternating rounds; medians are printed as a table. "TRL" is its defaults (only
`use_cpu` and the batch size are set): bfloat16 autocast, gradient checkpointing. "TRL float32" is the same without both, the
faster way on a CPU that has no bfloat16. A contestant that passes `--each` seconds is stopped and said to be so; the whole ends
after `--limit` seconds with what is there. Memory is the peak of the process. On a busy machine, look at tokens per CPU-second:
processor time of the same steps, all threads together. Needs the extras train and dev.
"""

from __future__ import annotations

import argparse
import builtins
import hashlib
import importlib
import inspect
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from app.training.worker.environment import ENVIRONMENT

ROOT = Path(__file__).parents[1]
MODULES = ("json", "pathlib", "statistics", "textwrap", "shutil", "string", "heapq", "bisect", "collections", "itertools",
           "functools", "random", "difflib", "logging")  # fmt: skip
NAMES = {"ours": "Aprendiz", "trl": "TRL", "trl-fp32": "TRL float32"}


def questions() -> list[tuple[str, str]]:
    found = []
    for module in MODULES:
        content = importlib.import_module(module)
        for name in sorted(dir(content)):
            text = inspect.getdoc(getattr(content, name)) if not name.startswith("_") else None
            if text and len(text) > 40 and not hasattr(builtins, name) and callable(getattr(content, name)):
                found.append((f"What does {module}.{name} do in Python?", text))
    return found


def make_rows(folder: Path, method: str, count: int, batch: int) -> dict[str, Any]:
    """Rows with their tokens, as the model's template renders them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    known = questions()
    random.Random(0).shuffle(known)
    rows: list[dict[str, Any]] = []
    for at, (question, answer) in enumerate(known):
        user = [{"role": "user", "content": question}]
        texts = [answer, known[at - 1][1]] if method == "dpo" else [answer]
        prompt = tokenizer.apply_chat_template(user, add_generation_prompt=True, tokenize=True, return_dict=False)
        whole = [
            tokenizer.apply_chat_template([*user, {"role": "assistant", "content": text}], tokenize=True, return_dict=False)
            for text in texts
        ]
        if all(each[: len(prompt)] == prompt and len(each) <= 1024 for each in whole) and len(rows) < count:
            answers = [each[len(prompt) :] for each in whole]
            rows.append({"question": question, "texts": texts, "prompt": prompt, "answers": answers, "label": at % 3 != 0})
    tokens = sum(len(row["prompt"]) + len(answer) for row in rows for answer in row["answers"])
    return {"rows": rows, "batch": batch, "tokens": tokens}


def run(who: str, method: str, folder: Path, rows: Path, threads: int, limit: float) -> dict[str, Any] | None:
    environ = dict(os.environ)
    if who == "ours":
        environ |= ENVIRONMENT
    command = [sys.executable, "-m", "bench.training_run", who, method, str(folder), str(rows), str(threads)]
    with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryDirectory() as work:
        environ["PYTHONPATH"] = str(ROOT)
        try:
            done = subprocess.run(
                command, cwd=work, env=environ, stdout=subprocess.PIPE, stderr=errors, text=True, timeout=limit, check=False
            )
        except subprocess.TimeoutExpired:
            return None
        for line in done.stdout.splitlines():
            if line.startswith("RESULT "):
                return dict(json.loads(line[7:]))
        errors.seek(0)
        raise SystemExit(f"{NAMES[who]} {method} failed:\n{errors.read()[-3000:]}")


def converted(model: Path, cache: Path) -> Path:
    """The model as float32 safetensors, in a process of its own (it takes memory, and minutes on a busy machine)."""
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    code = (
        "import sys, torch; from pathlib import Path; from app.providers.workers.hf_load import converted;"
        "print(converted(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], torch.float32))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model), str(cache), digest], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return Path(done.stdout.splitlines()[-1])


def table(method: str, tokens: int, results: dict[str, list[dict[str, Any] | None]]) -> None:
    print(
        "\n| contestant | tokens/s | ratio | tokens/CPU-s | ratio | peak MB | start to end of step 1, s | loss first → last |"
    )
    print("|---|---|---|---|---|---|---|---|")
    speeds = _medians(tokens, results, "seconds")
    works = _medians(tokens, results, "cpu")
    for who, runs in results.items():
        good = [each for each in runs if each]
        if not good:
            print(f"| {NAMES[who]}, {method} | stopped at its time limit | – | – | – | – | – | – |")
            continue
        memory = statistics.median(each["rss"] for each in good) / 1e6
        first = statistics.median(each["first"] for each in good)
        figures = []
        for found in (speeds, works):
            figures += [f"{found[who]:.1f}", f"{found[who] / found['trl']:.1f}" if "trl" in found else "–"]
        losses = good[0]["losses"]
        print(
            f"| {NAMES[who]}, {method} | {' | '.join(figures)} | {memory:,.0f} | {first:.0f} "
            f"| {losses[0]:.4f} → {losses[-1]:.4f} |",
            flush=True,
        )


def _medians(tokens: int, results: dict[str, list[dict[str, Any] | None]], what: str) -> dict[str, float]:
    """Tokens per second of ``what``, for those who finished at least once."""
    return {who: statistics.median(tokens / each[what] for each in runs if each) for who, runs in results.items() if any(runs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a GGUF file; else APRENDIZ_TEST_MODEL")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "training", help="where the converted model is kept")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--methods", nargs="+", choices=["sft", "dpo", "kto"], default=["sft", "dpo", "kto"])
    parser.add_argument("--who", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--each", type=float, default=300, help="seconds for one contestant's process")
    parser.add_argument("--limit", type=float, default=1500, help="seconds for everything")
    arguments = parser.parse_args()
    model = arguments.model or Path(os.environ.get("APRENDIZ_TEST_MODEL", ""))
    if not model.is_file():
        raise SystemExit("Give --model FILE.gguf, or set APRENDIZ_TEST_MODEL.")
    end = time.monotonic() + arguments.limit
    folder = converted(model.absolute(), arguments.cache)
    with tempfile.TemporaryDirectory() as work:
        for method in arguments.methods:
            rows = make_rows(folder, method, arguments.rows, arguments.batch)
            path = Path(work) / f"{method}.json"
            path.write_text(json.dumps(rows))
            print(f"\n{method}: {len(rows['rows'])} rows, {rows['tokens']} tokens", flush=True)
            results: dict[str, list[dict[str, Any] | None]] = {who: [] for who in arguments.who}
            for number in range(arguments.rounds):
                for who, runs in results.items():
                    left = end - time.monotonic()
                    # Who was stopped once is not asked again.
                    if left < 20 or (number and not any(runs)):
                        continue
                    runs.append(run(who, method, folder, path, arguments.threads, min(left, arguments.each)))
            table(method, rows["tokens"], {who: runs for who, runs in results.items() if runs})


if __name__ == "__main__":
    main()
