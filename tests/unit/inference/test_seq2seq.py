"""Encoder-decoder models: their loss is that of transformers, padding is harmless, and saved models are standard."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.support.opened import Opened
from tests.support.tiny import SEQ2SEQ
from tests.support.tokens import write_examples
from tests.unit.inference.test_beams import of_transformers
from tests.unit.inference.test_generate import frequent, ours, prompts
from transformers import AutoModelForSeq2SeqLM

from tunesmith.core.errors import RecipeError
from tunesmith.core.records import ENCODER_IDS, TokenizedExample
from tunesmith.data.token_dataset import Batch, TokenDataset
from tunesmith.fetch.reference import ModelFolder
from tunesmith.kernels.token_loss import token_loss
from tunesmith.model.adapters import attach_adapter, restore_weights, save_model
from tunesmith.model.load import ComputeConfig, load_base
from tunesmith.model.trainable import make_trainable
from tunesmith.recipe.tuning import FullTuning, LoraTuning

LIMIT = 14
SOURCES, TARGETS = (3, 12, 7, 1), (9, 2, 5, 1)


def rows(start: int = 2, seed: int = 0) -> list[TokenizedExample]:
    """Return rows whose sources and targets differ in length."""
    made = torch.Generator().manual_seed(seed)
    found = []
    for number, (source_length, target_length) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        source = torch.randint(4, 300, (source_length,), generator=made).tolist()
        target = torch.randint(4, 300, (target_length,), generator=made).tolist()
        found.append(
            TokenizedExample(
                str(number), (start, *target), (False, *[True] * target_length), {ENCODER_IDS: tuple(source)}
            )
        )
    return found


def batch(folder: Path, examples: Sequence[TokenizedExample], pad_id: int) -> Batch:
    write_examples(folder / "x.safetensors", examples)
    return TokenDataset(folder / "x.safetensors").batch(range(len(examples)), pad_id)


def transformers_loss(model: Any, examples: Sequence[TokenizedExample]) -> torch.Tensor:
    """Return the loss of transformers, with labels of -100 at padding, which the model shifts."""
    ids = torch.full((len(examples), max(SOURCES)), 9)
    mask = torch.zeros_like(ids)
    labels = torch.full((len(examples), max(TARGETS)), -100)
    for i, one in enumerate(examples):
        ids[i, : len(one.prompt_ids)] = torch.tensor(one.prompt_ids)
        mask[i, : len(one.prompt_ids)] = 1
        labels[i, : len(one.input_ids) - 1] = torch.tensor(one.input_ids[1:])
    loss: torch.Tensor = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    return loss


def start_of(kind: str) -> int:
    return 0 if "t5" in kind else 2


def adapted_rows(kind: str) -> list[TokenizedExample]:
    """Return rows for one kind of model: mBART's decoder starts with the language code that ends the target."""
    found = rows(start_of(kind))
    if kind != "mbart":
        return found
    return [TokenizedExample(one.example_id, (2, *one.input_ids[1:-1], 2), one.trained, one.columns) for one in found]


@pytest.mark.parametrize("kind", SEQ2SEQ)
def test_the_loss_and_its_gradients_are_those_of_transformers(opened: Opened, tmp_path: Path, kind: str) -> None:
    model, examples = opened(kind), adapted_rows(kind)
    model.requires_grad_(True)
    expected = transformers_loss(model, examples)
    expected.backward()
    wanted = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    for pad_id in (0, 1, 2, start_of(kind), 77):  # padding is masked by position, so any id can pad
        loss = token_loss(model, batch(tmp_path, examples, pad_id)).nll.mean()
        torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0)
    loss.backward()
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, wanted[name], rtol=1e-4, atol=1e-6)
    assert len(wanted) > 20


def test_t5_scales_the_hidden_state_and_flan_t5_does_not(opened: Opened) -> None:
    def logits_of_hidden(model: Any) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        hook = model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        decoder: list[torch.Tensor] = []
        other = model.get_decoder().register_forward_hook(lambda _, args, out: decoder.append(out.last_hidden_state))
        with torch.inference_mode():
            model(input_ids=torch.tensor([[5, 6]]), decoder_input_ids=torch.tensor([[0, 7]]))
        hook.remove()
        other.remove()
        return seen[0] / decoder[0]

    torch.testing.assert_close(
        logits_of_hidden(opened("t5")), torch.full((1, 2, 32), 32**-0.5)
    )  # scaled because embeddings are tied
    torch.testing.assert_close(logits_of_hidden(opened("flan-t5")), torch.ones(1, 2, 32))
    assert opened("flan-t5").lm_head.weight is not opened("flan-t5").shared.weight


@pytest.mark.parametrize("kind", SEQ2SEQ)
def test_padding_does_not_change_the_loss(opened: Opened, tmp_path: Path, kind: str) -> None:
    model, examples = opened(kind), rows(start_of(kind))
    with torch.inference_mode():
        together = token_loss(model, batch(tmp_path, examples, pad_id=5))
        alone = [token_loss(model, batch(tmp_path, [one], pad_id=5)).nll for one in examples]
        unpadded = [
            model(
                input_ids=torch.tensor([one.prompt_ids]),
                decoder_input_ids=torch.tensor([one.input_ids[:-1]]),
            ).logits[0].log_softmax(-1)
            for one in examples
        ]  # fmt: skip
    for place, one in enumerate(examples):
        batched = together.nll[together.rows == place]
        wanted = -unpadded[place][torch.arange(len(one.input_ids) - 1), torch.tensor(one.input_ids[1:])]
        torch.testing.assert_close(batched, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(alone[place], wanted, rtol=1e-5, atol=1e-5)


def test_only_trained_positions_reach_the_output_layer(opened: Opened, tmp_path: Path) -> None:
    model = opened("t5")
    seen: list[tuple[int, ...]] = []
    hook = model.lm_head.register_forward_hook(lambda _, args, out: seen.append(tuple(out.shape)))
    token_loss(model, batch(tmp_path, rows(), 0))
    hook.remove()
    assert seen == [(1, sum(TARGETS), 320)]


# --- answers ---


@pytest.mark.slow
@pytest.mark.parametrize("kind", SEQ2SEQ)
def test_encoder_decoder_answers_are_those_of_transformers(opened: Opened, kind: str) -> None:
    model, sources = opened(kind), prompts()
    free = ours(model, sources, decoder_prefix_ids=(2,))
    assert len({ids for ids, _ in free}) > 2
    stop_ids = frequent(free)
    wanted = [of_transformers(model, prompt, 1, stop_ids, LIMIT) for prompt in sources]
    for size in (1, 4, 8):
        assert (
            ours(model, sources, stop_ids=stop_ids, decoder_prefix_ids=(2,), max_new_tokens=LIMIT, batch_rows=size)
            == wanted
        )


def test_finished_rows_leave_the_batch_and_sources_are_encoded_once(opened: Opened) -> None:
    model, sources = opened("bart"), prompts()
    free = ours(model, sources, decoder_prefix_ids=(2,))
    stop_ids = frequent(free)
    encoded: list[int] = []
    hook = model.get_encoder().register_forward_hook(lambda _, args, out: encoded.append(len(out.last_hidden_state)))
    rows_seen: list[tuple[int, int]] = []
    other = model.get_decoder().register_forward_hook(
        lambda _, args, given, out: rows_seen.append(tuple(out.last_hidden_state.shape[:2])), with_kwargs=True
    )
    answers = ours(model, sources, stop_ids=stop_ids, decoder_prefix_ids=(2, 0))
    hook.remove()
    other.remove()
    needed = [len(ids) + stopped for ids, stopped in answers]
    assert encoded == [6]
    assert [count for count, _ in rows_seen] == [sum(n > step for n in needed) for step in range(max(needed))]
    assert [width for _, width in rows_seen] == [2] + [1] * (len(rows_seen) - 1)


# --- saved models ---


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(
            input_ids=torch.tensor([[5, 6, 7]]), decoder_input_ids=torch.tensor([[0, 8, 9]])
        ).logits
    return found


def tuned(model: Any, tuning: Any, folder: Path) -> Any:
    """Return the model after two training steps."""
    model = make_trainable(model, tuning, seed=0)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.01)
    for _ in range(2):
        token_loss(model, batch(folder, rows(0), 0)).nll.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["all-linear", ("q", "v")])
@pytest.mark.parametrize("kind", ["t5", "flan-t5"])
def test_a_saved_adapter_loads_in_peft(
    opened: Opened, folder_of: Callable[[str], Path], tmp_path: Path, kind: str, target: Any
) -> None:
    model = tuned(opened(kind), LoraTuning(method="lora", rank=2, target=target), tmp_path)
    save_model(model, tmp_path / "saved", base="base")
    plain = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(folder_of(kind)), str(tmp_path / "saved"))
    assert plain.peft_config["default"].task_type == "SEQ_2_SEQ_LM"
    assert torch.equal(logits(plain), logits(model))
    assert torch.equal(logits(attach_adapter(opened(kind), tmp_path / "saved")), logits(model))
    assert not torch.equal(logits(model), logits(opened(kind)))
    sources = prompts(3)
    assert ours(plain, sources, decoder_prefix_ids=(0,)) == ours(model, sources, decoder_prefix_ids=(0,))


@pytest.mark.parametrize("kind", ["t5", "flan-t5", "bart"])
def test_a_saved_full_model_loads_in_transformers_and_in_tunesmith(opened: Opened, tmp_path: Path, kind: str) -> None:
    model = tuned(opened(kind), FullTuning(method="full"), tmp_path)
    save_model(model, tmp_path / "saved", base="base")
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(plain), logits(model))
    ours_again = load_base(ModelFolder("x", tmp_path / "saved"), ComputeConfig(torch.device("cpu"), torch.float32))
    assert torch.equal(logits(ours_again), logits(model))
    other = make_trainable(opened(kind), FullTuning(method="full"), seed=0)
    restore_weights(other, tmp_path / "saved")
    assert torch.equal(logits(other), logits(model))
    # Its configuration must have the start token of the decoder and the end token.
    answer = plain.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=5, do_sample=False)
    assert answer[0, 0] == start_of(kind)
    assert plain.generation_config.eos_token_id == plain.config.eos_token_id


def test_sampling_options_of_the_generation_config_are_dropped(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(folder_of("bart"))
    model.generation_config.update(num_beams=4, no_repeat_ngram_size=3, min_length=20, forced_bos_token_id=0)
    model.save_pretrained(tmp_path)
    kept = load_base(ModelFolder("x", tmp_path), ComputeConfig(torch.device("cpu"), torch.float32)).generation_config
    assert (kept.num_beams, kept.no_repeat_ngram_size, kept.min_length) == (None, None, None)
    assert (kept.forced_bos_token_id, kept.decoder_start_token_id) == (0, 2)


# --- precision ---


@pytest.mark.parametrize("kind", ["t5", "mt5", "umt5"])
def test_t5_in_fp16_is_refused_before_its_weights_are_read(tmp_path: Path, opened: Opened, kind: str) -> None:
    opened(kind).config.save_pretrained(tmp_path)
    with pytest.raises(RecipeError) as caught:
        load_base(ModelFolder("x", tmp_path), ComputeConfig(torch.device("cpu"), torch.float16))
    assert caught.value.where == "model.precision"
    assert "fp16" in str(caught.value)


def test_bart_loads_in_fp16(opened: Opened) -> None:
    assert opened("bart", torch.float16).dtype == torch.float16


@pytest.mark.parametrize("kind", ["t5", "flan-t5", "bart"])
def test_the_loss_in_bf16_is_close_to_fp32(opened: Opened, tmp_path: Path, kind: str) -> None:
    one = batch(tmp_path, rows(start_of(kind)), 0)
    low = make_trainable(opened(kind, torch.bfloat16), LoraTuning(method="lora", rank=2), seed=0)
    found = token_loss(low, one).nll
    found.mean().backward()
    with torch.inference_mode():
        reference = token_loss(opened(kind), one).nll
        compute = ComputeConfig(torch.device("cpu"), torch.bfloat16)
        with compute.autocast(torch.float32):
            under_autocast = token_loss(opened(kind), one).nll
    assert found.dtype == under_autocast.dtype == torch.float32
    torch.testing.assert_close(found.detach().mean(), reference.mean(), rtol=0.03, atol=0)
    torch.testing.assert_close(under_autocast.mean(), reference.mean(), rtol=0.03, atol=0)
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in low.parameters()
               if weight.requires_grad)  # fmt: skip
