"""transformers' own Trainer fine-tunes a loaded artifact, evaluates it, saves it and goes on from what it saved."""

import math

import pytest
import torch
from model.artifact_folder import prose
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

TRUST = {"trust_remote_code": True}


@pytest.fixture
def trainer(eleven, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(eleven, **TRUST)
    texts = [{"input_ids": tokenizer(prose(8 + seed % 5, seed)).input_ids} for seed in range(32)]
    arguments = TrainingArguments(
        output_dir=tmp_path / "out",
        max_steps=10,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_steps=5,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    return Trainer(
        AutoModelForCausalLM.from_pretrained(eleven, **TRUST),
        arguments,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        train_dataset=texts,
        eval_dataset=texts[:8],
    )


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_it_fine_tunes_a_loaded_artifact(trainer, tmp_path):
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    falling = losses(trainer)
    assert len(falling) == 10 and falling[-1] < falling[0] - 0.3
    after = trainer.evaluate()["eval_loss"]
    assert after < before - 0.3 and math.isfinite(after)
    assert trainer.predict(trainer.eval_dataset).predictions.shape[0] == 8

    trainer.save_model(tmp_path / "tuned")
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned", **TRUST)
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(tuned.get_parameter(name), weight), name

    straight = losses(trainer)[5:]
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-5"))
    assert losses(trainer)[5:] == pytest.approx(straight, abs=1e-5)
