"""Lightning, Accelerate and Hugging Face's Trainer round modules that hold our losses: train, save, resume.

A run that is stopped and resumed must equal the one that was not, to the bit: banks, log Z, draws, spectral norms too.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from wcord_fast import CRDLoss, WCoRDLoss

N, K, S_DIM, T_DIM, D, B = 32, 7, 6, 9, 8, 8
LABELS = torch.arange(N) % 4
LOSSES = {
    "crd": lambda: CRDLoss(S_DIM, T_DIM, N, feat_dim=D, nce_k=K, labels=LABELS, seed=1),
    "wcord": lambda: WCoRDLoss(S_DIM, T_DIM, N, feat_dim=D, num_negatives=K, labels=LABELS, seed=1),
    "dual": lambda: WCoRDLoss(S_DIM, T_DIM, N, feat_dim=D, critic="dual", labels=LABELS, seed=1),
}
ours = pytest.mark.parametrize("name", LOSSES)


class Images(Dataset):
    """A data set as frameworks expect it: item i is an image, its label and i."""

    def __init__(self):
        self.x = torch.randn(N, 5, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return N

    def __getitem__(self, at):
        return {"x": self.x[at], "labels": LABELS[at], "idx": torch.tensor(at)}


class Distilled(nn.Module):
    """A student, a frozen teacher and a loss, as one module."""

    def __init__(self, name: str):
        super().__init__()
        torch.manual_seed(3)
        self.student, self.head = nn.Linear(5, S_DIM), nn.Linear(S_DIM, 4)
        self.teacher = nn.Linear(5, T_DIM).requires_grad_(False)
        self.distillation = LOSSES[name]()

    def forward(self, x, labels, idx):
        f_s = self.student(x)
        logits = self.head(f_s)
        loss = nn.functional.cross_entropy(logits, labels) + 0.1 * self.distillation(f_s, self.teacher(x), idx)
        return {"loss": loss, "logits": logits}


def assert_same(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    assert list(mine) == list(theirs)
    for name, value in mine.items():
        assert torch.equal(value.nan_to_num(), theirs[name].nan_to_num()), name


def moved(model, name):
    """Whether training has changed the loss's state."""
    fresh = Distilled(name).state_dict()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v.nan_to_num(), fresh[k].nan_to_num())}
    expected = {"student.weight", "distillation.embed_s.linear.weight"}
    if name != "dual":
        expected |= {f"distillation.contrast.{n}" for n in ("memory_v1.rows", "log_z", "sampler.state")}
    return expected <= changed


@ours
def test_lightning_checkpoints_and_resumes(tmp_path, name):
    lightning = pytest.importorskip("lightning.pytorch")

    class Task(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Distilled(name)

        def training_step(self, batch, _):
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    def fit(epochs, precision="32-true", **options):
        task = Task()
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            precision=precision,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(task, DataLoader(Images(), B), **options)
        return task, trainer

    whole, _ = fit(2)
    assert moved(whole.model, name)
    first, trainer = fit(1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = fit(2, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert_same(resumed, whole)
    loaded = Task.load_from_checkpoint(tmp_path / "half.ckpt")
    assert_same(loaded, first)
    for precision in ("bf16-mixed", "bf16-true"):
        assert torch.isfinite(fit(1, precision)[0].model.student.weight).all()


@ours
def test_accelerate_saves_and_loads(tmp_path, name):
    accelerate = pytest.importorskip("accelerate")

    def prepared():
        accelerator = accelerate.Accelerator(cpu=True)
        model = Distilled(name)
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        return accelerator, *accelerator.prepare(model, optimizer, DataLoader(Images(), B))

    def epoch(accelerator, model, optimizer, batches):
        for batch in batches:
            optimizer.zero_grad()
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()

    accelerator, model, *rest = prepared()
    epoch(accelerator, model, *rest)
    assert moved(accelerator.unwrap_model(model), name)
    accelerator.save_state(tmp_path)  # as safetensors
    accelerator.save_model(model, tmp_path / "model")
    half = copy.deepcopy(model)
    epoch(accelerator, model, *rest)
    other = prepared()
    other[0].load_state(tmp_path)
    assert_same(other[1], half)
    epoch(*other)
    assert_same(other[1], model)
    with accelerate.init_empty_weights():  # parameters only, by default
        empty = Distilled(name)
    accelerate.load_checkpoint_in_model(empty, tmp_path / "model", strict=True)
    assert_same(empty, half)
    with accelerate.init_empty_weights(include_buffers=True):
        empty = Distilled(name)
    empty.to_empty(device="cpu").load_state_dict(half.state_dict())
    assert_same(empty, half)
    batch = next(iter(DataLoader(Images(), B)))
    assert torch.equal(empty(**batch)["loss"], half(**batch)["loss"])


@ours
def test_the_trainer_of_transformers_resumes(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    def trainer(folder, epochs=2, **options):
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / folder),
            num_train_epochs=epochs,
            per_device_train_batch_size=B,
            learning_rate=0.01,
            lr_scheduler_type="constant",
            save_strategy="epoch",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **options,
        )
        return transformers.Trainer(model=Distilled(name), args=arguments, train_dataset=Images())

    whole = trainer("whole")
    whole.train()
    assert moved(whole.model, name)
    checkpoint = sorted((tmp_path / "whole").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))[0]
    assert (checkpoint / "model.safetensors").exists()
    resumed = trainer("resumed")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_same(resumed.model, whole.model)
    assert resumed.evaluate(Images())["eval_loss"] == whole.evaluate(Images())["eval_loss"]
    trainer("bf16", 1, bf16=True).train()
