"""Configuration: precedence, packaged files, and messages that name field, value and expectation."""

import os
import threading

import pytest
import yaml

from wcord_fast import distill, models
from wcord_fast.cli import crossmodal, sweep, table, teacher
from wcord_fast.cli.config import Config, from_dict
from wcord_fast.cli.options import options_of
from wcord_fast.cli.parser import CONFIGS, parse
from wcord_fast.cli.usage import UsageError
from wcord_fast.models.torchvision_import import torchvision_models
from wcord_fast.train.schedule import learning_rate

from .train_tiny import config_of as config


def test_no_arguments_give_the_packaged_digits_configuration():
    values = yaml.safe_load((CONFIGS / "digits.yaml").read_text())
    resolved = config().as_dict()
    assert {key: resolved[key] for key in values} == values
    assert resolved["data"] == "digits" and resolved["methods"] == ["ce", "wcord", "wcord+kd"]


def test_precedence_defaults_file_command_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 7\nlr: 1\nwcord: {lambda_gckt: 3, ot_iters: 5}\nquiet: true\n")
    actual = config("--wcord.ot-iters", "9", "--config", str(path), "--epochs=8")
    assert (actual.epochs, actual.lr, actual.quiet) == (8, 1.0, True)
    wcord = actual.options["wcord"]
    assert (wcord.lambda_gckt, wcord.ot_iters, wcord.lambda_lckt) == (3.0, 9, 0.05)
    assert actual.batch_size == Config.batch_size
    assert actual.student == Config.student  # a named file is not mixed with the packaged one


def test_flags_and_lists():
    actual = config("--no-tensorboard", "--channels-last", "--methods", "CRD+KD,ce", "--milestones=.5,9")
    assert (actual.tensorboard, actual.channels_last) == (False, True)
    assert actual.methods == ["crd+kd", "ce"] and actual.milestones == [0.5, 9.0]
    assert config("--no-wcord.lckt-trains-embed").options["wcord"].lckt_trains_embed is False
    assert config("--wcord.num-negatives", "all").options["wcord"].num_negatives == "all"
    assert config("--wcord.num-negatives", "12").options["wcord"].num_negatives == 12


def test_cifar100_sets_the_published_recipe():
    actual = config("--data", "cifar100")
    assert (actual.teacher, actual.student) == ("resnet32x4", "resnet8x4")
    assert config("--config", "cifar100_resnet32x4_resnet8x4").as_dict() == actual.as_dict()
    rates = [learning_rate(actual.recipe("student"), epoch - 1) for epoch in (1, 150, 151, 180, 181, 210, 211, 240)]
    assert rates == pytest.approx([0.05, 0.05, 5e-3, 5e-3, 5e-4, 5e-4, 5e-5, 5e-5])
    shorter = Config(epochs=8)
    assert [learning_rate(shorter.recipe("student"), e) for e in range(8)] == pytest.approx(
        [0.05] * 5 + [5e-3, 5e-4, 5e-5]
    )


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_packaged_files_are_complete_and_survive_a_round_trip(path):
    if path.stem.startswith("imagenet"):
        try:
            torchvision_models("resnet18")
        except ImportError as error:
            pytest.skip(str(error))
    actual = config("--config", str(path))
    assert from_dict(actual.as_dict()) == actual
    assert str(actual.directory) == f"runs/{actual.data}_{actual.teacher}_{actual.student}"


def test_the_teacher_may_have_its_own_epochs_and_rate():
    actual = config("--teacher-epochs", "3", "--teacher-lr", "0.2", "--epochs", "5")
    assert (actual.recipe("teacher")["epochs"], actual.recipe("teacher")["lr"]) == (3, 0.2)
    assert (actual.recipe("student")["epochs"], actual.recipe("student")["lr"]) == (5, 0.05)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--epocs", "3"], "unknown option '--epocs'; did you mean '--epochs'"),
        (["--wcord.lambda-gkct", "3"], "did you mean '--wcord.lambda-gckt'"),
        (["stray"], "unknown option 'stray'"),
        (["--no-epochs"], "unknown option '--no-epochs'"),
        (["--no-quiet=true"], "--no-quiet: expected no value, got 'true'"),
        (["--epochs"], "--epochs: expected a value, got none"),
        (["--output-dir", "--quiet"], "--output-dir: expected a value, got none"),
        (["--epochs", "2.5"], "epochs: expected int, got '2.5'"),
        (["--quiet=perhaps"], "quiet: expected bool, got 'perhaps'"),
        (["--epochs", "x"], "epochs: expected int, got 'x'"),
        (["--epochs", "0"], "epochs: expected an int of at least 1, got 0"),
        (["--lr", "-1"], "lr: expected a positive finite number, got -1"),
        (["--seed", "-1"], "seed: expected an int of at least 0, got -1"),
        (["--data", "cifar1000"], "data: expected one of .* got 'cifar1000'; did you mean 'cifar100'"),
        (["--student", "resnt8"], "student: expected one of .* got 'resnt8'; did you mean 'resnet8'"),
        (["--methods", "ce,wrod"], "methods: expected one of .* got 'wrod'; did you mean 'wcord'"),
        (["--methods", "ce,CE"], "methods: ce is named twice"),
        (["--methods", ""], "methods: "),
        (["--wcord.critic", "duel"], "wcord.critic: expected .*, got 'duel'; did you mean 'dual'"),
        (
            ["--wcord.num-negatives", "many"],
            "wcord.num_negatives: expected int or 'all' or null, got 'many'",
        ),
        (["--wcord.ot-eps", "0"], "wcord.ot_eps: expected a positive finite number, got 0"),
        (["--milestones", "a"], "milestones: expected float, got 'a'"),
        (["--milestones", "-1"], "milestones: expected a positive finite number, got -1"),
        (["--precision", "fp8"], "precision: .* got 'fp8'"),
        (["--device", "tpu"], "device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got 'tpu'"),
        (["--config", "digit"], "config: no file 'digit'; did you mean 'digits'"),
        (["--clip-grad", "0"], "clip_grad: expected a positive finite number, got 0"),
        (["--wcord.ot-eps", "1e-40"], "wcord.ot_eps: expected a number that float32 can hold, got 1e-40"),
        (["--lr", "1e300"], r"lr: expected a number that float32 can hold, got 1e\+300"),
        (["--lr", "1e999"], "lr: expected a positive finite number, got inf"),
        (["--lr", ".nan"], "lr: expected a positive finite number, got nan"),
        (["--milestones", "0.5,.inf"], "milestones: expected a positive finite number, got inf"),
        (["--wcord.temperature", ".nan"], "wcord.temperature: expected a positive finite number, got nan"),
        (["--crd.num-negatives", "1000000000000"], r"crd.num_negatives: expected a number below 2\^31"),
        (["--batch-size", "9" * 30], r"batch_size: expected a number below 2\^31"),
        (["--seed", str(2**63)], r"seed: expected an int below 2\^63"),
        (["--device", "cpu:7"], "device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got 'cpu:7'"),
        (["--lr", "9" * 400], "lr: expected a number below 1.8e308"),
        (["--wcord.lambda-gckt", "9" * 400], "wcord.lambda_gckt: expected a number below 1.8e308"),
        (["--output-dir", ""], "output_dir: expected the name of a file or a folder, got ''"),
        (["--data-dir", "a\0b"], r"data_dir: expected the name of a file or a folder, got 'a\\x00b'"),
        (["--teacher-checkpoint", " "], "teacher_checkpoint: expected the name of a file or a folder, got ' '"),
        (["--threads", "100000"], "threads: expected at most [0-9]+ on this machine, got 100000"),
    ],
)
def test_bad_options_are_named(argv, words):
    with pytest.raises(UsageError, match=words):
        config(*argv)


@pytest.mark.parametrize(
    "text, words",
    [
        ("epocs: 3", "unknown option 'epocs'; did you mean 'epochs'"),
        ("wcord: {lamda_gckt: 3}", "unknown option 'wcord.lamda_gckt'; did you mean 'wcord.lambda_gckt'"),
        ("quiet: 3", "quiet: expected bool, got 3"),
        ("methods: 3", "methods: expected list of str separated by commas, got 3"),
        ("methods: [3]", "methods: expected str, got 3"),
        ("epochs: true", "epochs: expected int, got True"),
        ("wcord: 3", "wcord: expected options as NAME: VALUE, got 3"),
        ("lr: 1\nepochs: [3", r"config: .*bad.yaml:2: expected ',' or '\]'"),
        ("a: &a [*a]", "config: .*bad.yaml cannot be used: Circular reference"),
        ("epochs: 1\nlr: 1\nepochs: 2", "config: .*bad.yaml:3: 'epochs' is there twice"),
        ("wcord: {ot_eps: 1, ot_eps: 2}", "config: .*bad.yaml:1: 'ot_eps' is there twice"),
        ("- 1", "config: .*bad.yaml: expected NAME: VALUE lines, got list"),
        ("[1]: 2", "config: .*bad.yaml:1: found unhashable key"),
        ("a: \x01", "config: .*bad.yaml cannot be used"),
        ("seed: .nan", "seed: expected int"),
        ("wcord: {ot_eps: " + "9" * 400 + "}", "ot_eps: expected a number below 1.8e308"),
    ],
)
def test_bad_files_are_named(text, words, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        config("--config", str(path))


@pytest.mark.parametrize("text", ["", "# nothing\n", "wcord: null", "wcord:\nepochs:\n", "{}"])
def test_empty_file_means_the_defaults(text, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert config("--config", str(path)) == Config()


def test_one_method_need_not_be_a_list(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("methods: wcord\nlr: &rate 0.5\nteacher_lr: *rate\n")
    actual = config("--config", str(path))
    assert actual.methods == ["wcord"] and actual.teacher_lr == 0.5
    path.write_text("methods: wcord, ce\n")
    assert config("--config", str(path)).methods == ["wcord", "ce"]


def test_help_shows_types_and_defaults(capsys):
    with pytest.raises(SystemExit) as left:
        config("--epochs=3", "--help")
    output = " ".join(capsys.readouterr().out.split())
    assert left.value.code == 0 and "(type: int, default: 240)" in output
    assert "(type: list of float separated by commas, default: 0.625,0.75,0.875)" in output
    assert "(type: one of 'fp32', 'bf16', default: fp32)" in output and "<function" not in output


@pytest.mark.parametrize(
    "argv, name, value",
    [
        (["--lr=1e-4"], "lr", 1e-4),
        (["--lr=3"], "lr", 3.0),
        (["--clip-grad", "null"], "clip_grad", None),
        (["--data-dir=null"], "data_dir", None),
        (["--data-dir=3"], "data_dir", "3"),
        (["--methods=[ce, 'kd']"], "methods", ["ce", "kd"]),
        (["--quiet", "false"], "quiet", False),
    ],
)
def test_typed_text_is_converted_to_the_fields_type(argv, name, value):
    actual = getattr(config(*argv), name)
    assert actual == value and type(actual) is type(value)


def test_numbers_that_float32_holds_are_accepted():
    assert config("--lr=1e-30", "--wcord.num-negatives=2147483647", f"--seed={2**63 - 1}").lr == 1e-30


def test_every_option_has_a_sentence_of_help():
    for kind in (Config, *distill.sections().values()):
        for name, option in options_of(kind).items():  # a KeyError names an option without an entry
            assert " " in option.help, f"{kind.__name__}.{name}"


def test_a_folder_named_like_a_packaged_file_is_no_configuration(tmp_path, monkeypatch):
    expected = config("--data=digits").as_dict(), config().as_dict()
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "cifar10", "crossmodal", "privileged"):
        (tmp_path / name).mkdir()
    assert (config("--data=digits").as_dict(), config().as_dict()) == expected
    assert config("--config=digits").as_dict() == expected[0] and config("--data=cifar10").data == "cifar10"
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UsageError, match="config: no file 'nothing'"):
        config("--config=nothing")


def test_options_that_a_command_takes_from_the_file_too(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("seeds: [3, 4]\noutput_dir: there\nmethods: [ce]\nepochs: 2\n")
    options, texts = parse("table", table.TableOptions, ["--config", str(path), "--seeds=5"])
    assert (options.seeds, options.output_dir, options.methods) == ([5], "there", ["ce"])
    assert texts == {"config": str(path)}
    assert parse("sweep", sweep.SweepOptions, ["--config", str(path)])[0].seeds == [3, 4]


@pytest.mark.parametrize(
    "command, record, option",
    [
        ("table", table.TableOptions, "--seed=5"),
        ("sweep", sweep.SweepOptions, "--limit-student=100"),
        ("crossmodal", crossmodal.CrossModalOptions, "--seed=5"),
        ("teacher", teacher.TeacherOptions, "--seeds=1,2"),
    ],
)
def test_an_option_without_effect_is_refused(command, record, option):
    with pytest.raises(UsageError, match=f"{option.partition('=')[0]}: not an option of {command}"):
        parse(command, record, [option])


def test_networks_are_spelled_canonically():
    actual = config("--teacher=ResNet-8x4", "--student=shufflev1")
    assert (actual.teacher, actual.student) == ("resnet8x4", "ShuffleV1")
    assert models.spelled("WRN-40-2") == "wrn_40_2" and models.spelled("WRN-10-3") == "wrn_10_3"
    assert models.spelled("timm:ResNet18") == "timm:ResNet18" and models.spelled("a.B") == "a.B"


def test_a_configuration_may_come_through_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for epochs in (7, 8):
        writer = threading.Thread(target=pipe.write_text, args=(f"epochs: {epochs}\nseeds: [1]\n",))
        writer.start()
        assert config("--config", str(pipe)).epochs == epochs
        writer.join()


def test_all_methods_may_stand_in_the_file_of_a_table(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("methods: [all]\nteacher: vgg13\nstudent: vgg8\n")
    options, texts = parse("table", table.TableOptions, ["--config", str(path)])
    assert options.methods == table._config(options, "vgg13-vgg8", texts).methods == table.all_methods()
