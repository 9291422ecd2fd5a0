"""`--wcord.preset`: the options that it sets, the options that win over it, and that it names no run."""

import copy
import pickle
from dataclasses import dataclass, fields, replace

import pytest
import torch
import yaml

from bench.accuracy_variants import TUNED as MEASURED
from bench.accuracy_variants import VARIANTS
from wcord_fast import distill, models
from wcord_fast.cli import table
from wcord_fast.cli.main import main
from wcord_fast.cli.parser import read_config
from wcord_fast.cli.usage import UsageError
from wcord_fast.distill.wcord import PRESETS, WCoRDOptions

from .train_tiny import config_of as config

TUNED = PRESETS["tuned"]


def test_paper_preset_equals_the_defaults_bit_for_bit():
    assert replace(WCoRDOptions(preset="paper"), preset=None) == WCoRDOptions()
    for name in ("wcord", "gckt", "lckt", "wcord+kd"):
        text = [distill.described(config(*given).method_options(name)) for given in ((), ("--wcord.preset=paper",))]
        assert text[0] == text[1] and "preset" not in text[0]


def test_tuned_preset_equals_the_measured_options():
    """Its options are those of the variant whose rows are in the result files."""
    _, words = VARIANTS[MEASURED]
    assert replace(WCoRDOptions(preset="tuned"), preset="paper") == config(*words).method_options("wcord")


def test_options_given_win_over_a_preset_and_a_preset_over_defaults(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("wcord: {preset: paper, lambda_lckt: 3, lckt_center: none}\n")
    actual = config("--config", str(path), "--wcord.preset=tuned", "--wcord.ramp-gckt=2").options["wcord"]
    assert (actual.preset, actual.lambda_lckt, actual.lckt_center, actual.ramp_gckt) == ("tuned", 3.0, "none", 2.0)
    assert (actual.init_banks, actual.z, actual.lckt_pairs) == (True, "ramp", "only")
    assert actual.lambda_gckt == WCoRDOptions.lambda_gckt
    assert WCoRDOptions(preset="tuned", lambda_lckt=0.05).lambda_lckt == 0.05  # given, though the default


def test_preset_run_equals_the_run_with_its_options_typed_out():
    typed = distill.described(distill.options_for("wcord", WCoRDOptions(**TUNED)))
    assert distill.described(distill.options_for("wcord", WCoRDOptions(preset="tuned"))) == typed


def test_a_table_with_another_preset_is_not_comparable():
    pair = "vgg13-vgg8"
    file = {"config": str(table.recipe(pair)), "methods": "ce,wcord,gckt+kd"}
    assert table.not_comparable(pair, read_config(file)) == ""
    remark = table.not_comparable(pair, read_config(file | {"wcord.preset": "tuned"}))
    assert "wcord, gckt+kd with other options than the published" in remark


def test_options_of_transport_are_refused_where_the_preset_computes_none():
    message = r"wcord.ot_eps: expected lckt_pairs 'none' or 'prior' .*; lckt_pairs='only' is from preset='tuned'"
    with pytest.raises(UsageError, match=message):
        config("--wcord.preset=tuned", "--wcord.ot-eps=0.1")
    with pytest.raises(ValueError, match=r"lckt_rho: expected lckt_pairs"):
        WCoRDOptions(preset="tuned", lckt_rho=0.5)
    assert WCoRDOptions(preset="tuned", ot_eps=0.1, lckt_pairs="prior").lambda_lckt == 10.0
    assert WCoRDOptions(preset="paper", ot_eps=0.1).ot_eps == WCoRDOptions(ot_eps=0.1).ot_eps == 0.1


def test_without_a_ramp_the_preset_estimates_z_once():
    assert (WCoRDOptions(preset="tuned", ramp_gckt=0.0).z, WCoRDOptions(preset="tuned").z) == ("first", "ramp")
    assert WCoRDOptions(preset="tuned", ramp_gckt=0.0, z="ema").z == "ema"


def test_positional_option_wins_over_the_preset():
    names = [f.name for f in fields(WCoRDOptions)]
    first = [getattr(WCoRDOptions(), name) for name in names[: names.index("lambda_lckt") + 1]]
    actual = WCoRDOptions(*first, preset="tuned")
    assert (actual.z, actual.lambda_lckt, actual.lckt_pairs) == ("first", 0.05, "only")


def test_filled_record_is_not_filled_again():
    tuned = WCoRDOptions(preset="tuned")
    changed = replace(tuned, lambda_lckt=0.05, lckt_pairs="none")
    assert (changed.lambda_lckt, changed.lckt_pairs, changed.init_banks) == (0.05, "none", True)
    assert copy.deepcopy(tuned) == pickle.loads(pickle.dumps(tuned)) == replace(tuned) == tuned
    assert list(vars(tuned)) == [f.name for f in fields(WCoRDOptions)]
    lckt, gckt = (distill.options_for(name, tuned) for name in ("lckt", "gckt"))
    assert (lckt.lambda_gckt, lckt.lambda_lckt) == (0.0, 10.0)
    assert (gckt.lambda_gckt, gckt.lambda_lckt) == (0.8, 0.0)


def test_derived_record_has_the_presets():
    @dataclass
    class Mine(WCoRDOptions):
        mine: int = 1

    assert Mine(preset="tuned", mine=2).lambda_lckt == 10.0


def test_dry_run_prints_a_configuration_with_the_preset_filled_in(tmp_path, capsys):
    words = ["distill", "--wcord.preset=tuned", "--wcord.lambda-lckt=2", "--dry-run", f"--output-dir={tmp_path}"]
    assert main(words) == 0
    text = capsys.readouterr().out
    shown = yaml.safe_load(text)["wcord"]
    assert {name: shown[name] for name in TUNED} == TUNED | {"lambda_lckt": 2.0} and shown["preset"] == "tuned"
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump({"wcord": shown}))
    assert config("--config", str(path)).options["wcord"] == WCoRDOptions(preset="tuned", lambda_lckt=2.0)


def test_a_value_that_does_not_go_with_a_preset_is_refused_by_name():
    with pytest.raises(UsageError, match=r"wcord.preset: .*did you mean 'tuned'"):
        config("--wcord.preset=tune")
    for preset in ("tune", [], 3):
        with pytest.raises(ValueError, match="preset: expected one of"):
            WCoRDOptions(preset=preset)
    with pytest.raises(UsageError, match=r"wcord.z: .* ramp_gckt above 0, got 0[^;]*$"):
        config("--wcord.preset=tuned", "--wcord.ramp-gckt=0", "--wcord.z=ramp")
    with pytest.raises(ValueError, match=r"critic: [^;]*$"):
        WCoRDOptions(preset="tuned", critic="other")


@pytest.mark.parametrize(("student", "features"), [("resnet14", "raw"), ("resnet8x4", "mapped")])
def test_features_are_mapped_where_the_widths_differ(student, features):
    teacher, example = models.create("resnet20", num_classes=10), torch.randn(4, 3, 32, 32)
    networks = {"student": models.create(student, num_classes=10), "teacher": teacher}
    method = distill.create("lckt", **networks, example=example, num_data=20, preset="tuned")
    assert method.wcord.local.features == features
    assert (method.wcord.local.map is None) == (features == "raw")
    out = [distill.Outputs(*network(example, return_features=True)) for network in networks.values()]
    assert method(*out, distill.Batch(example, torch.arange(4), torch.arange(4))).value.isfinite()
