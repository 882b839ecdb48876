"""The client of the Hub, and what its errors say."""

from __future__ import annotations

import subprocess
import sys

import pytest
from huggingface_hub import close_session, constants, get_session
from huggingface_hub.errors import HfHubHTTPError

from trainer_core_hub_push.client import (
    endpoint_in_use,
    hub_api,
    in_words,
    is_repo_id,
    is_transient,
    masked,
    retry_after,
    status_of,
)

TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567"


def raised(action, *args, **options):
    try:
        action(*args, **options)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_the_endpoint_is_read_when_it_is_used(hub, monkeypatch):
    assert endpoint_in_use() == hub_api("hf_writer").endpoint == hub.endpoint
    assert endpoint_in_use("http://other/") == "http://other"
    monkeypatch.delenv("HF_ENDPOINT")
    assert endpoint_in_use() == constants.ENDPOINT


def test_the_client_says_who_asks(hub, api):
    api.whoami()
    assert api.library_name == "trainer_core"
    assert hub.requests[0].status == 200


def test_without_a_token_the_environments_is_used(hub, monkeypatch):
    assert status_of(raised(hub_api().whoami)) == 401 or "LocalToken" in type(raised(hub_api().whoami)).__name__
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert hub_api().whoami()["name"] == "other"
    assert hub_api("").whoami()["name"] == "other"


def test_a_connection_that_falls_silent_fails_in_passing(hub, monkeypatch):
    close_session()
    monkeypatch.setattr("trainer_core_hub_push.client.SILENCE_SECONDS", 0.2)
    hub.fault("GET", "whoami", "delay", seconds=3600)
    api = hub_api("hf_writer")
    error = raised(api.whoami)
    assert (type(error).__name__, is_transient(error)) == ("ReadTimeout", True)
    assert api.whoami()["name"] == "user"
    close_session()


def test_a_limit_that_the_user_has_set_stays(hub):
    session, none = get_session(), dict.fromkeys(("connect", "read", "write", "pool"))
    for given in ({"read": 7.0}, {"connect": 5.0, "write": 6.0}, dict.fromkeys(none, 8.0)):
        session.timeout = type(session.timeout)(**none | given)
        hub_api("hf_writer")
        assert session.timeout.as_dict() == dict.fromkeys(none, 300.0) | given
    close_session()


@pytest.mark.parametrize(
    ("text", "is_id"),
    [
        ("user/repo", True), ("u/r", True), ("a-b.c/d_e", True), ("user", False), ("user/repo/x", False),
        ("-a/b", False), ("a/b--c", False), ("a/b..c", False), ("a/b.", False), ("a b/c", False), ("/a", False),
        ("a/", False), (f"a/{'b' * 97}", False),
    ],
)  # fmt: skip
def test_an_id_has_an_owner_and_a_name(text, is_id):
    assert is_repo_id(text) is is_id


@pytest.mark.parametrize("status", [408, 409, 429, 500, 501, 502, 503, 504, 507, 520, 599])
def test_what_may_go_well_later_is_known_by_its_status(hub, api, status):
    hub.fault("GET", "whoami", status, retry_after=2.5)
    error = raised(api.whoami)
    assert (status_of(error), is_transient(error), retry_after(error)) == (status, True, 2.5)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 412, 422])
def test_what_will_not_go_well_later_is_known_too(hub, api, status):
    hub.fault("GET", "whoami", status)
    error = raised(api.whoami)
    assert (status_of(error), is_transient(error), retry_after(error)) == (status, False, None)


@pytest.mark.parametrize("kind", ["cut", "lost", "cut_answer"])
def test_a_line_that_fails_may_go_well_later(hub, api, kind):
    hub.fault("GET", "whoami", kind)
    error = raised(api.whoami)
    assert (status_of(error), is_transient(error)) == (None, True)


def test_an_error_is_told_by_what_it_was_raised_from(hub, api):
    hub.fault("GET", "whoami", 503, retry_after=3)
    cause = raised(api.whoami)

    def wrap():
        raise RuntimeError("Error while uploading 'a.bin' to the Hub.") from cause

    error = raised(wrap)
    assert (status_of(error), is_transient(error), retry_after(error)) == (503, True, 3.0)
    assert in_words(error) == "RuntimeError 503: Error while uploading 'a.bin' to the Hub"
    assert in_words(cause) == "HfHubHTTPError 503: This error was asked for"


def test_an_error_of_our_own_is_not_transient():
    assert not is_transient(ValueError("wrong"))
    assert in_words(ValueError("wrong\n  twice")) == "ValueError: wrong twice"
    assert in_words(ValueError("Invalid user token. ")) == "ValueError: Invalid user token"
    assert in_words(ValueError()) == "ValueError"


def test_no_token_is_told(hub):
    error = raised(hub_api("hf_wrong").whoami)
    assert isinstance(error, HfHubHTTPError)
    assert "hf_wrong" not in in_words(error, "hf_wrong")
    assert in_words(RuntimeError(f"a {TOKEN} and quiet."), "quiet", None, "") == "RuntimeError: a *** and ***"
    assert masked(f"Bearer {TOKEN}") == "Bearer ***"


def test_the_hubs_library_is_not_loaded_with_the_plugin():
    modules = "trainer_core_hub_push.plugin, trainer_core_hub_push.client"
    code = f"import sys, {modules}; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
