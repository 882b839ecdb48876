"""No text of ours shows a secret: not a message, a repr, a dictionary, a journal or the console."""

import json
import pickle
from typing import ClassVar

import pytest
from pydantic import ValidationError

import trainer_core.settings.arguments as arguments_module
from trainer_core import Section, SettingsError, TrainingArguments, mask_secrets, mask_text
from trainer_core.console.report import error_in_words
from trainer_core.journal import Journal, read
from trainer_core.phases import Phase, Signal
from trainer_core.settings.secrecy import is_secret, mask_mistaken
from trainer_core.settings.section import Given, problem, shown
from trainer_core.state import Request
from trainer_core.testing import run

TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567"


class TellTale(Section):
    """Sends something somewhere."""

    flat: ClassVar = {"tale_token": "token", "tale_pairs": "pairs"}
    switch = "tale"
    on_by_default = False
    token: str | None = None
    pairs: dict[str, str] | None = None
    number: int = 0


class TellTalePlugin:
    settings_type = TellTale

    def __init__(self, settings):
        self.settings = settings


@pytest.fixture
def tale(monkeypatch):
    """Settings of a plugin that keeps its token as plain text."""
    monkeypatch.setattr(arguments_module, "installed_plugins", lambda blocked: {"tale_plugin": TellTalePlugin})
    return lambda **options: TrainingArguments("out", tale=True, **options)


def mistakes(**options):
    with pytest.raises(SettingsError) as caught:
        TrainingArguments(**options)
    return caught.value.problems


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("hub_token", True),
        ("hub_push.token", True),
        ("hub-token", True),
        ("MY_PASSWORD", True),
        ("client_secret", True),
        ("wandb_api_key", True),
        ("tokenizer", False),
        ("num_tokens", False),
        ("eos_token", False),
        ("token.name", False),
        ("seed", False),
    ],
)
def test_the_end_of_a_name_tells_a_secret(name, secret):
    assert is_secret(name) is secret


def test_data_is_masked_by_names_and_where_tokens_stand():
    given = {"token": "a", "deep": [{"api_key": 3, "id": "x"}, ("password", f"see {TOKEN}!")], "none_token": None}
    assert mask_secrets(given) == {
        "token": "***",
        "deep": [{"api_key": "***", "id": "x"}, ("password", "see ***!")],
        "none_token": None,
    }
    assert mask_secrets("a", "hub_token") == "***"
    thing = object()
    assert mask_secrets(thing) is thing


@pytest.mark.parametrize("text", ["runs/hf_models", "hf_transfer", "hf_hub_download", "shelf_AbCdEfGhIjKlMnOpQr"])
def test_words_that_begin_like_a_token_are_kept(text):
    assert mask_text(text) == mask_secrets(text) == text


@pytest.mark.parametrize(
    "name", ["hub_tokn", "hub_tokens", "hub-toke", "hub.tokne", "tocken", "passwort", "wandb_api_ky", "secrets"]
)
def test_a_misspelt_secret_is_masked(name):
    assert mask_mistaken("quiet", name) == "***"


@pytest.mark.parametrize("name", ["tokenizer", "section", "hub_model_id", "eos_token", "taken_by", "record"])
def test_a_value_under_another_name_is_kept(name):
    assert mask_mistaken("loud", name) == "loud"
    assert mask_mistaken(["loud"], name) == ["loud"]


def test_a_value_that_is_a_token_and_nothing_else_is_masked_in_a_message_under_any_name():
    assert shown("seed", "hf_short1") == "'***'"
    assert shown("seed", ["hf_short1", {"x": "hf_short1", "tokn": "a"}]) == "['***', {'tokn': '***', 'x': '***'}]"
    assert shown("max_tokens", 5) == "5"


def test_a_whole_sentence_is_looked_through():
    assert SettingsError([f"seed: clashes with {TOKEN}."]).problems == ["seed: clashes with ***."]
    assert problem("a", f"is {TOKEN}", Given("b")) == f"a: is {TOKEN}, got 'b'."  # masked when it is raised
    copied = pickle.loads(pickle.dumps(SettingsError([f"a: {TOKEN}"])))
    assert str(copied) == "1 setting is wrong:\n  a: ***"


def test_what_was_given_is_not_told_by_an_unknown_option():
    assert mistakes(hub_tokn="quiet", sede="hf_quiet1") == [
        "hub_tokn: is not an option, got '***' (from keyword). Did you mean 'hub_token'?",
        "sede: is not an option, got '***' (from keyword). Did you mean 'seed'?",
    ]


def test_two_spellings_that_differ_are_told_without_their_values(tale):
    with pytest.raises(SettingsError) as caught:
        tale(tale_token="quiet", tale_plugin={"token": "silent"})
    assert caught.value.problems == [
        "tale_plugin.token: is given as tale_token='***' as well, got '***' (from keyword). "
        "They are one option: keep tale_token or tale_plugin.token."
    ]


def test_a_section_that_is_off_is_told_without_values(monkeypatch, tale):
    with pytest.raises(SettingsError) as caught:
        TrainingArguments("out", tale=False, tale_token="quiet")
    assert caught.value.problems == [
        "tale_token: belongs to 'tale_plugin', and tale=False turns it off, got '***' (from keyword). "
        "Set tale, or leave it out."
    ]


def test_a_plain_secret_of_a_plugin_is_in_no_text(tale):
    args = tale(tale_token="quiet", tale_pairs={"password": "silent", "name": "n", "free": TOKEN})
    assert args.tale_token == "quiet"
    assert args.replace(seed=3).tale_token == "quiet"
    texts = [repr(args), str(args), repr(args.tale_plugin), str(args.tale_plugin), json.dumps(args.to_dict())]
    texts.append(repr(dict(args.sources)))
    assert [text for text in texts if "quiet" in text or "silent" in text or TOKEN in text] == []
    assert args.to_dict()["tale_plugin"] == {
        "token": "***",
        "pairs": {"password": "***", "name": "n", "free": "***"},
        "number": 0,
    }
    assert repr(args.tale_plugin) == (
        "TellTale(token='***', pairs={'password': '***', 'name': 'n', 'free': '***'}, number=0)"
    )


def test_setting_an_option_does_not_repeat_it(tale):
    with pytest.raises(AttributeError) as caught:
        tale().tale_token = "quiet"
    assert str(caught.value) == ("tale_token: settings are frozen, got '***'. Use args.replace(tale_token='***').")


def test_a_section_made_by_hand_does_not_repeat_what_it_got():
    with pytest.raises(ValidationError) as caught:
        TellTale(tokn="quiet", number="silent")
    assert "quiet" not in str(caught.value)
    assert "silent" not in str(caught.value)


@pytest.mark.parametrize(
    "line", [["--hub-tokn", "quiet"], ["--hub_tokn=quiet"], ["--seed", "hf_quiet"], ["hf_quiet"], ["--seed", TOKEN]]
)
def test_a_command_line_is_not_repeated(line):
    with pytest.raises(SettingsError) as caught:
        TrainingArguments.from_command_line(line)
    assert "quiet" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert "'***'" in str(caught.value)


def test_the_environment_is_not_repeated(monkeypatch):
    monkeypatch.setenv("TRAINER_CORE_HUB_TOKN", "quiet")
    assert mistakes() == [
        "hub_tokn: is not an option, got '***' (from environment TRAINER_CORE_HUB_TOKN). Did you mean 'hub_token'?"
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", 'seed: 1\nhub_token: "quiet\n'),
        ("b.yaml", "hub_token: quiet: more\n"),
        ("c.toml", 'hub_token = "quiet\n'),
        ("d.json", '{"hub_token": "quiet" 3}'),
        ("e.yaml", f"seed: [{TOKEN}\n"),
    ],
)
def test_a_file_that_cannot_be_read_is_not_quoted(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(SettingsError, match="cannot be read") as caught:
        TrainingArguments.from_file(path)
    assert "quiet" not in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_what_follows_the_name_of_a_secret_is_masked_in_a_quoted_line():
    text = """at "hub_token: 'a b'", my_api_key=c, seed: 3"""
    assert mask_text(text, pairs=True) == """at "hub_token: ***", my_api_key=***, seed: 3"""


def test_the_journal_and_the_console_mask_what_an_error_says(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.open()
    journal.left(Phase.INIT, 0, Phase.EPOCH, Signal.READY, Request(Signal.READY, "x", f"because {TOKEN}"))
    journal.failed(Phase.EPOCH, 0, RuntimeError(f"refused {TOKEN}"))
    journal.close()
    assert TOKEN not in (tmp_path / "journal.jsonl").read_text()
    assert [entry.why for entry in read(tmp_path / "journal.jsonl")] == ["because ***", "refused ***"]
    assert error_in_words(RuntimeError(f"refused {TOKEN}")) == "RuntimeError: refused ***"


def test_a_failed_run_leaves_no_token_in_its_folder(tmp_path, capsys):
    class Refused:
        def on_step_end(self, trainer):
            raise RuntimeError(f"the server refused {TOKEN}")

    with pytest.raises(RuntimeError):
        run([Refused()], output_dir=tmp_path, installed=["console", "logging", "checkpointing"])
    said = capsys.readouterr()
    texts = [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert [text for text in [*texts, said.out, said.err] if TOKEN in text] == []
    assert any("the server refused ***" in text for text in texts)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("postgresql://me:pw@host/db", "postgresql://me:***@host/db"),
        ({"url": "https://u:p%40w@h/p?x=1"}, {"url": "https://u:***@h/p?x=1"}),
        ({"headers": {"Authorization": "whatever"}}, {"headers": {"Authorization": "***"}}),
        ({"header": "Bearer abcd.efgh"}, {"header": "Bearer ***"}),
        ("sqlite:///runs/a.db", "sqlite:///runs/a.db"),
        ("http://host:8080/x@y", "http://host:8080/x@y"),
        ("Bearer of news", "Bearer of news"),
    ],
)
def test_passwords_of_urls_and_credentials_of_headers_are_masked(value, shown):
    assert mask_secrets(value) == shown


def test_a_password_in_a_plugins_url_is_in_no_text_of_the_arguments():
    args = TrainingArguments(tuning={"storage": "postgresql://me:hunter2@host/db"})
    assert args.tuning.storage == "postgresql://me:hunter2@host/db"
    assert "hunter2" not in repr(args) + args.to_json_string() + str(args.to_dict())
