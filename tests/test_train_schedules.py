"""Filled banks and ramps in the driver: their effect in each step, equal after a resume and as a graph."""

import math

import pytest
import torch

from tests.grid import slow
from tests.test_train_fast import NoWatch, Recorder
from tests.test_train_loop import Killed, assert_equal, die_in_step, everything
from tests.train_tiny import TRAIN, make_run
from wcord_fast import distill
from wcord_fast.batch import Batch
from wcord_fast.distill.schedule import ramp_factor, ramp_steps
from wcord_fast.train import loop
from wcord_fast.train.cuda_graph import GraphedStep
from wcord_fast.train.fill_banks import fill_banks
from wcord_fast.train.loop import fit
from wcord_fast.train.step import gradients

CRD = {"crd": {"num_negatives": 9, "feat_dim": 16, "init_banks": True, "ramp": 0.5, "z": "ramp"}}
LOCAL = {"lckt_features": "mapped", "lckt_center": "batch", "ot_solver": "sinkhorn", "ot_eps": 0.1}
WCORD = {
    "wcord": {
        "num_negatives": 9, "feat_dim": 16, "init_banks": True, "ramp_gckt": 1.5, "ramp_lckt": 3.0, "z": "ramp",
        "lckt_pairs": "prior", **LOCAL,
    }
}  # fmt: skip
METHODS = [("crd", CRD), ("wcord+kd", WCORD), ("lckt", {"wcord": {"lckt_pairs": "only", **LOCAL}})]


def test_ramp_is_linear_in_the_step():
    assert ramp_steps(2, 3, 10) == ramp_steps(0.2, 3, 10) == 6 and ramp_steps(0.25, 3, 10) == 8
    assert [ramp_factor(done, 4) for done in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert ramp_steps(0, 3, 10) == 0 and ramp_factor(0, 0) == 1


@pytest.mark.parametrize("method, config", [slow(*METHODS[0]), METHODS[1], slow(*METHODS[2])])
def test_a_run_that_died_resumes_exactly_and_fills_no_bank_again(tmp_path, monkeypatch, method, config):
    fit(make_run(tmp_path / "whole", method, epochs=4, log_grad_norms=True, **config))
    for die in (2, 5, 8, 11):  # of three steps an epoch: within every one
        broken = tmp_path / f"broken {die}"
        die_in_step(monkeypatch, die)
        with pytest.raises(Killed):
            fit(make_run(broken, method, epochs=4, log_grad_norms=True, **config))
        monkeypatch.undo()
        torch.rand(5)
        fit(make_run(broken, method, epochs=4, log_grad_norms=True, **config))
        assert_equal(everything(tmp_path / "whole"), everything(broken))


def test_fill_sets_every_row_to_its_images_feature_and_changes_nothing_else(tmp_path):
    run = make_run(tmp_path, "crd", **CRD)
    before = {k: v.clone() for k, v in run.student.state_dict().items()}
    drawn = torch.get_rng_state()
    fill_banks(run, run.teacher)
    assert_equal(before, run.student.state_dict())
    assert torch.equal(drawn, torch.get_rng_state())
    assert run.method.training and run.student.training and not run.teacher.training
    crd, data = run.method.crd.eval(), run.train.dataset
    assert crd.contrast.log_z.isnan().all() and int(crd.contrast.sampler.state[1]) == 0
    images = run.train.normalise(data.train_images)
    with torch.no_grad():
        for network, embed, bank in (
            (run.student.eval(), crd.embed_s, crd.contrast.memory_v1),
            (run.teacher, crd.embed_t, crd.contrast.memory_v2),
        ):
            want = embed(network(images, return_features=True)[0][-1])
            torch.testing.assert_close(bank.rows, want, atol=1e-5, rtol=1e-4)
    assert len(crd.contrast.memory_v1.rows) == TRAIN


def test_the_weight_grows_and_log_z_is_set_anew_at_the_end_of_the_ramp(tmp_path, monkeypatch):
    run, seen = make_run(tmp_path, "crd", epochs=4, **CRD), []
    real = loop.train_step

    def watched(*args):
        factor = float(run.method._factor)
        fractions = real(*args)
        seen.append((factor, tuple(run.method.crd.contrast.log_z.tolist())))
        return fractions

    monkeypatch.setattr(loop, "train_step", watched)
    fit(run)
    factors, log_z = zip(*seen, strict=True)
    assert factors == pytest.approx([min(1, k / 6) for k in range(12)])  # half of four epochs of three steps
    assert len(set(log_z[:6])) == len(set(log_z[6:])) == 1 and log_z[5] != log_z[6]
    assert all(math.isfinite(z) for z in log_z[0])


def test_ramp_factor_scales_the_terms_gradient_from_zero_to_published(tmp_path):
    off = {"crd": {"ramp": 0.0, "z": "first"}, "wcord": {"ramp_gckt": 0.0, "ramp_lckt": 0.0, "z": "first"}}
    for name, config in (("crd", CRD), ("wcord", WCORD)):
        run = make_run(tmp_path, name, **config)
        plain = make_run(tmp_path, name, **{name: config[name] | off[name]})
        batch = Batch(*next(iter(run.train.epoch(0))))

        def gradient(run, batch=batch):
            for p in run.parameters():
                p.grad = None
            networks = (run.student.eval(), run.teacher)
            outputs = [distill.Outputs(*net(batch.images, return_features=True)) for net in networks]
            run.method.eval()(*outputs, batch).value.backward()
            return torch.cat([p.grad.flatten() for p in run.student.parameters() if p.grad is not None])

        run.method.at_step(0, 3, 2)
        assert gradient(run).abs().max() == 0 and gradient(plain).abs().max() > 0
        for done in range(20):
            run.method.at_step(done, 3, 2)
        torch.testing.assert_close(gradient(run), gradient(plain), rtol=1e-6, atol=0)


@pytest.mark.parametrize("method, config", METHODS[:2])
def test_a_graph_follows_the_ramp(tmp_path, method, config):
    settings = {"epochs": 3, "batch_size": 8, **config}
    plain = make_run(tmp_path / "plain", method, **settings)
    fit(plain)
    run = make_run(tmp_path / "graphed", method, **settings)
    recorder = Recorder(run)
    step = lambda batch, watch: gradients(run, batch, watch)[0]  # noqa: E731
    run.graphed = GraphedStep(step, run.parameters(), run.train, recorder, lambda f: f(), NoWatch)
    fit(run)
    assert recorder.replays > 5
    assert_equal(everything(tmp_path / "graphed"), everything(tmp_path / "plain"))


def test_the_plan_s_mass_on_the_pairs_is_logged_with_the_shares(tmp_path):
    run = make_run(tmp_path, "wcord", log_grad_norms=True, **WCORD)
    for row in fit(run):
        assert 0 < row["lckt_on_pairs"] <= 1 and {"grad_gckt", "grad_lckt"} <= row.keys()


def test_options_at_their_defaults_do_not_enter_a_runs_record():
    text = distill.described(distill.options_for("wcord"))
    later = {"ramp_gckt", "ramp_lckt", "init_banks", "lckt_pairs", "lckt_rho", "lckt_pairs_by", "lckt_center"}
    assert not later & text.keys() and {"lambda_gckt", "z", "lckt_features"} <= text.keys()
    changed = distill.METHODS["wcord"].options(ramp_gckt=2.0, lckt_pairs="only")
    assert later & distill.described(changed).keys() == {"ramp_gckt", "lckt_pairs"}


@pytest.mark.parametrize(
    "method, options, message",
    [
        ("crd", {"z": "ramp"}, "z: 'ramp' estimates .*; expected ramp above 0"),
        ("wcord", {"z": "ramp", "ramp_lckt": 2.0}, "z: 'ramp' estimates .*; expected ramp_gckt above 0"),
        ("crd", {"ramp": -1.0}, "ramp: "),
        ("wcord", {"ramp_lckt": math.nan}, "ramp_lckt: "),
        ("wcord", {"lckt_rho": 1.0}, r"lckt_rho: expected a number in \[0, 1\), got 1"),
        ("wcord", {"lckt_pairs": "some"}, "lckt_pairs: "),
        ("wcord", {"lckt_center": "yes"}, "lckt_center: "),
    ],
)
def test_bad_schedule_options_are_refused(method, options, message):
    with pytest.raises(ValueError, match=message):
        distill.METHODS[method].options(**options)
