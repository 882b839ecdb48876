import json

import pytest
from pydantic import SecretStr

from trainer_core import SettingsError, TrainingArguments
from trainer_core.testing import only
from trainer_core_hub_push import HubPushSettings


@pytest.fixture(autouse=True)
def installed():
    with only("hub_push", "checkpointing"):
        yield


def problems(**options):
    with pytest.raises(SettingsError) as caught:
        TrainingArguments(**{"output_dir": "runs/first", **options})
    return caught.value.problems


def repo_id(**options):
    args = TrainingArguments(**{"output_dir": "runs/first", "push_to_hub": True, **options})
    return args.hub_push.repo_id(args)


def test_nothing_is_pushed_by_default():
    args = TrainingArguments("runs/first")
    assert (args.push_to_hub, args.hub_strategy, args.hub_token) == (False, "every_save", None)
    assert args.hub_push == HubPushSettings()


def test_flat_names_and_the_section_are_one():
    flat = TrainingArguments(
        push_to_hub=True,
        hub_model_id="team/first",
        hub_strategy="checkpoint",
        hub_token="hf_marked",
        hub_private_repo=True,
        hub_revision="trial",
        hub_always_push=True,
        push_to_hub_organization="team",
    )
    nested = TrainingArguments(
        hub_push={
            "push": True,
            "model_id": "team/first",
            "strategy": "checkpoint",
            "token": SecretStr("hf_marked"),
            "private_repo": True,
            "revision": "trial",
            "always_push": True,
            "organization": "team",
        }
    )
    assert flat == nested
    assert flat.hub_push.plain_token == "hf_marked"


@pytest.mark.parametrize(
    ("alias", "name", "value"),
    [
        ("hug_strategy", "hub_strategy", "all_checkpoints"),
        ("push_to_hub_model_id", "hub_model_id", "first"),
        ("push_to_hub_token", "hub_token", "hf_marked"),
    ],
)
def test_other_spellings_are_taken_and_said_once(caplog, alias, name, value):
    args = TrainingArguments(push_to_hub=True, **{alias: value})
    assert args == TrainingArguments(push_to_hub=True, **{name: value})
    assert caplog.messages == [f"{alias}: is read as {name}. Write {name}."]
    assert getattr(args, alias) == getattr(args, name)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "first"),
        ({"output_dir": "runs/first/"}, "first"),
        ({"hub_model_id": "mine"}, "mine"),
        ({"hub_model_id": "team/mine"}, "team/mine"),
        ({"push_to_hub_organization": "team"}, "team/first"),
        ({"push_to_hub_organization": "team", "hub_model_id": "mine"}, "team/mine"),
        ({"push_to_hub_organization": "team", "hub_model_id": "team/mine"}, "team/mine"),
    ],
)
def test_the_repository_is_named_by_the_settings_or_the_folder(options, expected):
    assert repo_id(**options) == expected


def test_the_repository_of_the_folder_one_stands_in_is_its_name(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert repo_id(output_dir=".") == "here"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"hub_strategy": "end"},
            "hub_strategy: has no effect with push_to_hub=False, got 'end' (from keyword). "
            "Set push_to_hub=True, or leave it out.",
        ),
        (
            {"hub_strategy": "every_save"},
            "hub_strategy: has no effect with push_to_hub=False, got 'every_save' (from keyword). "
            "Set push_to_hub=True, or leave it out.",
        ),
        (
            {"hub_push": {"strategy": "checkpoint"}},
            "hub_strategy: has no effect with push_to_hub=False, got 'checkpoint' (from keyword). "
            "Set push_to_hub=True, or leave it out.",
        ),
        (
            {"hub_always_push": True},
            "hub_always_push: has no effect with push_to_hub=False, got True (from keyword). "
            "Set push_to_hub=True, or leave it out.",
        ),
        (
            {"push_to_hub": True, "save_strategy": "no"},
            "hub_strategy: needs saves, and save_strategy is 'no', got 'every_save'. "
            "Set save_strategy, or hub_strategy='end'.",
        ),
        (
            {"push_to_hub": True, "save_strategy": "no", "hub_strategy": "all_checkpoints"},
            "hub_strategy: needs saves, and save_strategy is 'no', got 'all_checkpoints' (from keyword). "
            "Set save_strategy, or hub_strategy='end'.",
        ),
        (
            {"push_to_hub": True, "output_dir": "runs/my first"},
            "hub_model_id: is needed, the name of output_dir is no name of a repository, got 'my first'. "
            "Set hub_model_id to 'owner/name'.",
        ),
        (
            {"push_to_hub": True, "push_to_hub_organization": "team", "hub_model_id": "user/first"},
            "push_to_hub_organization: contradicts hub_model_id='user/first', got 'team' (from keyword). "
            "Set hub_model_id='team/first'.",
        ),
        (
            {"hub_model_id": "a/b/c"},
            "hub_model_id: is no name of a repository, got 'a/b/c' (from keyword). "
            "Write 'name' or 'owner/name' with letters, digits and . _ -.",
        ),
        (
            {"push_to_hub_organization": "the team"},
            "push_to_hub_organization: is no name of an owner, got 'the team' (from keyword). "
            "Write letters, digits and . _ -.",
        ),
        (
            {"hub_strategy": "every_sav", "push_to_hub": True},
            "hub_strategy: must be one of 'end', 'every_save', 'checkpoint', 'all_checkpoints', got 'every_sav' "
            "(from keyword). Did you mean 'every_save'?",
        ),
        ({"hub_token": 5}, "hub_token: must be text, got '***' (from keyword). Put it in quotes."),
    ],
)
def test_a_mistake_is_told_before_training(options, problem):
    assert problems(**options) == [problem]


@pytest.mark.parametrize("name", ["a b", "a--b", "a..b", "-a", "a-", ".a", "a.git", "x" * 97, "", "a/", "/b", "a\n"])
def test_a_name_that_the_hub_would_refuse_is_refused(name):
    assert len(problems(hub_model_id=name)) == 1


@pytest.mark.parametrize("name", ["a", "a.b-c_d", "A1/b", "x" * 96])
def test_a_name_that_the_hub_takes_is_taken(name):
    assert TrainingArguments(hub_model_id=name).hub_model_id == name


def test_saves_of_the_best_model_are_saves():
    args = TrainingArguments(push_to_hub=True, save_strategy="no", load_best_model_at_end=True, eval_strategy="epoch")
    assert args.push_to_hub


@pytest.mark.parametrize("options", [{}, {"push_to_hub": True, "hub_strategy": "end"}, {"hub_model_id": "first"}])
def test_settings_go_into_json_and_back(options):
    args = TrainingArguments("runs/first", **options)
    assert TrainingArguments(**json.loads(json.dumps(args.to_dict()))) == args
    assert args.replace(seed=7).replace(seed=args.seed) == args


def test_a_token_never_leaves_the_settings_in_words(caplog):
    args = TrainingArguments("runs/first", push_to_hub=True, hub_token="hf_marked")
    told = [repr(args), str(args), json.dumps(args.to_dict()), repr(args.hub_push), str(args.hub_token)]
    assert [text for text in told if "hf_marked" in text] == []
    assert args.replace(seed=7).hub_push.plain_token == "hf_marked"
    assert caplog.messages == []


def test_a_masked_token_is_read_as_none_and_that_is_said(caplog):
    args = TrainingArguments("runs/first", push_to_hub=True, hub_token="hf_marked")
    again = TrainingArguments(**args.to_dict())
    assert again.hub_token is None
    assert again == args.replace(hub_token=None)
    assert caplog.messages == [
        "hub_token: is masked, that of HF_TOKEN or the login is used. Pass hub_token to use another."
    ]


@pytest.mark.parametrize("around", [" {}", "{}\n", "\t{} \r\n"])
def test_blanks_around_a_token_are_no_part_of_it(around):
    args = TrainingArguments("runs/first", hub_token=around.format("hf_marked"))
    assert args.hub_push.plain_token == "hf_marked"


def test_a_blank_token_is_none():
    assert TrainingArguments("runs/first", hub_token=" \n").hub_token is None


@pytest.mark.parametrize(
    "token", ["hf_mar ked", "hf_mar\nked", "hf_mar\x00ked", "hf_m\u00e4rked", "hf_marked\u200b", "\x7fhf"]
)
@pytest.mark.parametrize("name", ["hub_token", "hub_push.token"])
def test_a_token_that_can_be_none_is_refused_and_not_shown(name, token):
    assert problems(**{name: token}) == [
        f"{name}: holds characters that no token has, got '***' (from keyword). "
        "Copy it again, without blanks, line breaks and letters beyond ASCII."
    ]


@pytest.mark.parametrize(
    "revision", ["", "a b", "a..b", "/a", "a/", "a//b", ".a", "a/.b", "a.lock", "a.", "-a", "a:b", "@", "a\n"]
)
def test_a_branch_that_can_be_none_is_refused(revision):
    assert problems(hub_revision=revision) == [
        f"hub_revision: is no name of a branch, got {revision!r} (from keyword). "
        "Write it as git takes it, such as 'main'."
    ]


@pytest.mark.parametrize("revision", ["main", "v1.0", "trial/one", "refs/pr/1", "a@b", "a_b-c"])
def test_a_branch_that_git_takes_is_taken(revision):
    assert TrainingArguments("runs/first", hub_revision=revision).hub_revision == revision


@pytest.mark.parametrize(
    "layers",
    [
        {"hub_push": {"token": "hf_marked", "pussh": True}},
        {"hub_push": None, "hub_push.token": "hf_marked"},
        {"hub_push.token": "hf_marked", "hub_push": None},
        {"hub_push": {"token": ["hf_marked"]}},
        {"hub_token": "hf_marked", "push_to_hub_token": "hf_marked2"},
        {"hub_token": "hf_marked", "hub_push": None},
        {"hub_tokens": "hf_marked"},
    ],
)
def test_a_mistake_does_not_tell_the_token(layers):
    assert "hf_marked" not in "\n".join(problems(**layers))


def test_a_command_line_takes_the_options_of_the_original(monkeypatch):
    line = ["--push_to_hub", "--hub_model_id", "team/first", "--hub_strategy", "end", "--hub_private_repo", "true"]
    args = TrainingArguments.from_command_line([*line, "--hub_push.retries", "2"])
    assert args.hub_push == HubPushSettings(
        push=True, model_id="team/first", strategy="end", private_repo=True, retries=2
    )
