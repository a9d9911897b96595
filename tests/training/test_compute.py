"""The trainer's arithmetic against transformers and PEFT: log-probabilities, gradients, files."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

import transformers  # noqa: E402

from app.providers.workers.hf_source import LoadRefused  # noqa: E402
from app.training.worker import losses  # noqa: E402
from app.training.worker.batch import Batch, Example, TokenRow, pack  # noqa: E402
from app.training.worker.llama_policy import LlamaPolicy  # noqa: E402
from app.training.worker.opening import open_policy  # noqa: E402
from tests.training import compute_models as tiny  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

Open = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    transformers.utils.logging.disable_progress_bar()
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def policy(folder: Path) -> Iterator[Open]:
    opened: list[Any] = []

    def opening(where: Path | None = None, *, threads: int = 1, **changes: Any) -> Any:
        opened.append(open_policy(where or folder, config=tiny.config(**changes), device="cpu", threads=threads))
        return opened[-1]

    yield opening
    for each in opened:
        each.close()


def relative(first: Any, second: Any) -> float:
    return float((first - second).norm() / second.norm().clamp(min=1e-12))


def weighted(seed: int = 5) -> losses.Loss:
    """Some loss with a different slope for each label."""

    def loss(batch: Batch, logprobs: Any) -> tuple[Any, dict[str, float]]:
        weights = torch.sin(batch.labels.double() * 1.7 + batch.label_sequence + seed).float()
        return (logprobs * weights).sum(), {}

    return loss


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_log_probabilities_and_gradients_are_those_of_transformers_and_peft(
    family: str, tuning: str, policy: Open, tmp_path: Path
) -> None:
    where = tiny.make(tmp_path, family)
    ours = policy(where, tuning=tuning)
    assert isinstance(ours, LlamaPolicy) == (family in tiny.OWN)
    tiny.stir(ours)
    rows = tiny.examples()
    batch = pack(rows)
    assert len(batch.tokens) < batch.tokens_in - 40  # beginnings are shared
    model = tiny.oracle(where, tuning, ours.trainable())
    expected = tiny.plain_logprobs(model, rows)
    value, _ = weighted()(batch, expected)
    value.backward()
    theirs = {name.replace(".default", ""): each.grad for name, each in model.named_parameters() if each.requires_grad}

    assert torch.allclose(ours.logprobs(batch), expected, atol=2e-5)
    ours.accumulate([batch], weighted())
    mine = tiny.named_gradients(ours)
    assert mine.keys() == theirs.keys()
    assert max(relative(mine[name], theirs[name]) for name in theirs) < 1e-4


def test_packed_is_one_by_one(policy: Open) -> None:
    ours = policy()
    tiny.stir(ours)
    rows = tiny.examples()
    ours.accumulate([pack([each]) for each in rows], weighted_by_row(rows))
    alone = ours.parameters()[0].grad.clone()
    singles = torch.cat([ours.logprobs(pack([each])) for each in rows]).detach()
    for share in (True, False):
        batch = pack(rows, share=share)
        assert torch.allclose(ours.logprobs(batch), singles, atol=1e-5)
        ours.accumulate([batch], weighted_by_row(rows))
        assert relative(ours.parameters()[0].grad, alone) < 1e-5


def weighted_by_row(rows: list[Example]) -> losses.Loss:
    def loss(batch: Batch, logprobs: Any) -> tuple[Any, dict[str, float]]:
        factors = torch.tensor([1.0 + number for number in batch.numbers])
        return (logprobs * factors[batch.label_sequence]).sum(), {}

    return loss


@pytest.mark.parametrize("family", ["llama", "mistral-window"])
def test_long_rows_are_computed_in_blocks_and_fused_attention_agrees(family: str, policy: Open, tmp_path: Path) -> None:
    ours = policy(tiny.make(tmp_path, family))
    tiny.stir(ours)
    rng = random.Random(4)
    prompt = [rng.randrange(tiny.VOCABULARY) for _ in range(300)]
    rows = [Example((tiny.row(rng, 290, 290, prompt), tiny.row(rng, 20, 20, prompt)))]
    batch = pack(rows)
    assert batch.lengths[0] == 300
    expected = tiny.plain_logprobs(tiny.oracle(tmp_path, "lora", ours.trainable()), rows)
    assert torch.allclose(ours.logprobs(batch), expected, atol=5e-5)
    ours.accumulate([batch], weighted())
    blocks = ours.parameters()[0].grad.clone()
    ours.model.fused = True
    assert torch.allclose(ours.logprobs(batch), expected, atol=5e-5)
    ours.accumulate([batch], weighted())
    assert relative(ours.parameters()[0].grad, blocks) < 1e-4


def test_autograd_gets_the_same_gradient(policy: Open) -> None:
    ours = policy()
    tiny.stir(ours)
    batch = pack(tiny.examples())
    weighted()(batch, ours.logprobs(batch))[0].backward()
    through = ours.parameters()[0].grad.clone()
    ours.accumulate([batch], weighted())
    assert torch.equal(through, ours.parameters()[0].grad)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_sum_over_micro_batches_is_the_same_bit_by_bit(share: float, policy: Open) -> None:
    rows = [each for seed in range(4) for each in tiny.examples(seed)]
    grads, kinds = [], []
    for threads in (2, 2, 1):
        ours = policy(threads=threads, dropout=share)
        tiny.stir(ours)
        ours.batch_tokens = 60
        batches = ours.split(rows)
        assert len(batches) >= 4
        kinds.append([batch.numbers for batch in batches])
        for _ in range(2):
            results = ours.accumulate(batches, losses.sft(losses.sft_total(rows)), seed=11)
            grads.append(ours.parameters()[0].grad.clone())
        assert [len(result.statistics) for result in results] == [1] * len(batches)
    assert all(torch.equal(grads[0], other) for other in grads[1:4])
    if kinds[0] == kinds[-1]:
        assert relative(grads[0], grads[-1]) < 1e-5
    if share:
        ours.accumulate(batches, losses.sft(losses.sft_total(rows)), seed=12)
        assert relative(ours.parameters()[0].grad, grads[-1]) > 0.01


def test_dropout_has_the_gradient_of_its_loss(policy: Open) -> None:
    ours = policy(dropout=0.4)
    tiny.stir(ours)
    batch, loss = pack(tiny.examples()), losses.sft(10.0)
    ours.accumulate([batch], loss, seed=3)
    flat = ours.parameters()[0]
    grad = flat.grad.clone()
    direction = grad / grad.norm()
    values = []
    for step in (1e-2, -1e-2):
        with torch.no_grad():
            flat.add_(direction, alpha=step)
        values.append(ours.accumulate([batch], loss, seed=3)[0].loss)
        with torch.no_grad():
            flat.add_(direction, alpha=-step)
    assert (values[0] - values[1]) / 2e-2 == pytest.approx(float(grad.norm()), rel=2e-2)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_fresh_adapter_changes_nothing_and_begins_as_pefts_does(family: str, policy: Open, tmp_path: Path) -> None:
    ours = policy(tiny.make(tmp_path, family))
    batch = pack(tiny.examples())
    assert torch.equal(ours.logprobs(batch).detach(), ours.logprobs(batch, reference=True))
    for name, tensor in ours.trainable().items():
        assert tensor.dtype == torch.float32
        if "lora_B" in name:
            assert not tensor.any()
        else:
            bound = tensor.shape[1] ** -0.5
            assert bound * 0.8 < float(tensor.abs().max()) <= bound
    again = policy(tmp_path)
    assert all(torch.equal(first, second) for first, second in zip(ours.parameters(), again.parameters(), strict=True))
    tiny.stir(ours)
    assert not torch.equal(ours.logprobs(batch).detach(), ours.logprobs(batch, reference=True))


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_peft_loads_the_saved_adapter(family: str, policy: Open, tmp_path: Path) -> None:
    from peft import PeftModel

    base = tiny.make(tmp_path / "base", family)
    ours = policy(base)
    tiny.stir(ours)
    ours.save(tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    model = PeftModel.from_pretrained(model, tmp_path / "adapter")
    rows = tiny.examples()
    assert torch.allclose(tiny.plain_logprobs(model, rows), ours.logprobs(pack(rows)), atol=2e-5)


def test_full_tuning_saves_a_model_and_knows_when_its_reference_is_gone(policy: Open, folder: Path, tmp_path: Path) -> None:
    ours = policy(tuning="full", threads=2)
    rows = tiny.examples()
    batch = pack(rows)
    assert ours.reference(rows)[1].reference == pytest.approx([float(ours.logprobs(batch).detach()[9:20].sum())], abs=1e-4)
    optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-3)
    before = ours.accumulate([batch], losses.sft(losses.sft_total(rows)))
    for _ in range(3):
        optimizer.step()
        after = ours.accumulate([batch], losses.sft(losses.sft_total(rows)))
    assert after[0].loss < before[0].loss - 0.01
    with pytest.raises(ValueError, match="reference"):
        ours.reference(rows)
    ours.save(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.allclose(tiny.plain_logprobs(model, rows), ours.logprobs(batch), atol=2e-5)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_fused_optimizers_changes_are_seen(tuning: str, policy: Open) -> None:
    """Such a kernel does not count up a tensor's version."""
    ours = policy(tuning=tuning, dtype="bfloat16")
    batch, loss = pack(tiny.examples()), losses.sft(10.0)
    before = ours.accumulate([batch], loss)[0].loss
    torch.optim.AdamW(ours.parameters(), lr=0.01, fused=True).step()
    if tuning == "full":
        with pytest.raises(ValueError, match="reference"):
            ours.logprobs(batch, reference=True)
    assert ours.accumulate([batch], loss)[0].loss < before - 1e-3


def test_reference_log_probabilities_come_with_the_examples_in_their_order(policy: Open) -> None:
    ours = policy(threads=2)
    ours.batch_tokens = 40
    rows = tiny.pairs(count=5)
    tiny.stir(ours)
    for example in ours.reference(rows):
        base = ours.logprobs(pack([example], share=False), reference=True)
        sums = pack([example]).sums(base).tolist()
        assert example.reference == pytest.approx(sums, abs=1e-4)
        assert pack([example]).reference.tolist() == pytest.approx(sums, abs=1e-4)


def test_bfloat16_is_close_to_float32(policy: Open) -> None:
    exact, coarse = policy(), policy(dtype="bfloat16")
    tiny.stir(exact)
    tiny.stir(coarse)
    rows = tiny.examples()
    total = losses.sft(losses.sft_total(rows))
    one, other = (each.accumulate([pack(rows)], total)[0].loss for each in (exact, coarse))
    assert other == pytest.approx(one, rel=1e-2)
    assert relative(coarse.parameters()[0].grad, exact.parameters()[0].grad) < 0.1
    full = policy(dtype="bfloat16", tuning="full")
    full.accumulate([pack(rows)], total)
    assert full.parameters()[0].grad.dtype == torch.float32


def test_an_error_in_a_loss_reaches_the_caller_and_the_policy_goes_on(policy: Open) -> None:
    ours = policy(threads=2)
    batches = [pack([each]) for each in tiny.examples()]

    def broken(batch: Batch, logprobs: Any) -> tuple[Any, dict[str, float]]:
        raise ValueError(f"no loss for {batch.numbers}")

    with pytest.raises(ValueError, match="no loss"):
        ours.accumulate(batches, broken)
    assert len(ours.accumulate(batches, losses.sft(1.0))) == len(batches)


def test_what_is_no_decoder_is_refused(tmp_path: Path) -> None:
    transformers.T5Config(num_layers=1).save_pretrained(tmp_path)
    with pytest.raises(LoadRefused):
        open_policy(tmp_path, config=tiny.config(), device="cpu")


def test_a_row_needs_a_label() -> None:
    with pytest.raises(ValueError, match="row"):
        pack([Example((TokenRow([1, 2, 3], [True, False, False]),))])
    with pytest.raises(ValueError, match="row"):
        pack([])


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(policy: Open, folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.training.compute_child", str(folder), str(tmp_path / "rendezvous")]
    children = [subprocess.Popen([*command, str(rank), str(tmp_path / f"{rank}.pt")]) for rank in range(2)]
    try:
        assert [child.wait(100) for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()
            child.wait()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(first[0], second[0])
    ours = policy()
    tiny.stir(ours)
    rows = tiny.examples()
    ours.accumulate(ours.split(rows), losses.sft(losses.sft_total(rows)))
    assert relative(first[0], ours.parameters()[0].grad) < 1e-5


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(600)
def test_the_bundled_model_in_bfloat16_has_the_loss_of_float32(model_file: Path, tmp_path: Path) -> None:
    from app.providers.workers.hf_load import converted

    base = converted(model_file, tmp_path, "bundled", torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    rows = []
    for question, answer in (("What is the capital of France?", "It is Paris."), ("Say a number.", "Forty-two, of course.")):
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        tokens = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
        rows.append(Example((TokenRow(tokens, [True] * len(tokens)),)))
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        expected = -float(tiny.plain_logprobs(model, rows).sum())
    for dtype, error in (("float32", 1e-5), ("bfloat16", 1e-2)):
        ours = open_policy(base, config=tiny.config(dtype=dtype), device="cpu")
        loss = -float(ours.logprobs(pack(rows), reference=True).sum())
        assert loss == pytest.approx(expected, rel=error)
        ours.close()
