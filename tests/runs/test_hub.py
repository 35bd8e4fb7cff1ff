"""Models on the Hugging Face Hub, by the requests that the real client makes to a server of this machine."""

import os
import re
import subprocess
import sys
import time

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from lm import load
from lm.files import UserError
from lm.runs.load import PRETRAINED
from tests import commands, fake_hub
from tests.commands import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own affair


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server that the client of this process asks, with the right token and an empty cache."""
    with fake_hub.running() as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
        yield server
        close_session()


@pytest.fixture
def uploaded(hub, capsys):
    """The pretrained model as USER/NAME."""
    assert commands.export([str(PRETRAINED), "--hub", "USER/NAME"]) == 0
    return hub


def refused(name, message):
    with pytest.raises(UserError, match=message) as error:
        load(name)
    assert "\n" not in str(error.value) and name in str(error.value)


def test_up_and_down_again(uploaded, capsys):
    assert capsys.readouterr().err.startswith(
        f"uploaded {uploaded.url}/USER/NAME; use it with: char-lm generate hub:USER/NAME"
    )
    _, files = uploaded.repositories["USER/NAME"]  # the commit that makes it, and one more
    assert sorted(files) == [".gitattributes", "README.md", "config.yaml", "model.safetensors", "tokenizer.json"]
    assert any(path.startswith("PUT /large/") for path in uploaded.asked) and not uploaded.private
    (model, tokenizer), (want, _) = load("hub:USER/NAME"), load(PRETRAINED)
    assert tokenizer.characters and all(torch.equal(x, want.state_dict()[k]) for k, x in model.state_dict().items())


def test_the_card_has_losses_data_command_and_a_sample_that_can_be_written_again(uploaded, capsys):
    text = uploaded.repositories["USER/NAME"][-1]["README.md"].decode()
    head, body = re.fullmatch(r"---\n(.*?)---\n(.*)", text, re.DOTALL).groups()
    assert "library_name: char-lm" in head and "- mingru" in head and "pipeline_tag: text-generation" in head
    assert "windowed loss 1.37" in body and "trained on tiny_shakespeare" in body and "trained by `" in body
    words, sample = re.search(r"    \$ char-lm generate (.*?)\n(.*)\n", body, re.DOTALL).groups()
    capsys.readouterr()
    assert commands.generate(words.split()) == 0
    written = capsys.readouterr().out
    assert re.sub(r"^    ", "", sample, flags=re.MULTILINE).strip() == written.strip()


def test_a_revision_is_a_branch_a_tag_or_a_commit(uploaded, capsys):
    first = fake_hub.sha("USER/NAME", 1)
    uploaded.tags["v1"] = 1
    run = ROOT / "tests" / "fixtures" / "v1" / "run"
    assert commands.export([str(run), "--hub", "USER/NAME", "--weights", "bfloat16"]) == 0
    old, new = load("hub:USER/NAME@v1")[0], load("hub:USER/NAME")[0]
    assert old.embedding.embedding_dim == load(PRETRAINED)[0].embedding.embedding_dim != new.embedding.embedding_dim
    assert load(f"hub:USER/NAME@{first}")[0].parameters_total == old.parameters_total
    for name, weight in new.state_dict().items():
        assert torch.equal(weight, load(run)[0].state_dict()[name].bfloat16().float())
    refused("hub:USER/NAME@v9", "no such revision")


def test_nothing_but_the_files_of_a_model_is_downloaded(uploaded, tmp_path):
    files = uploaded.repositories["USER/NAME"][-1]
    files |= {
        "modeling.py": b"raise SystemExit",
        "best.ckpt": b"\x80\x04.",
        "../../x": b"",
        "checkpoints/last.ckpt": b"x",
    }
    uploaded.asked.clear()
    load("hub:USER/NAME")
    asked = {path.rpartition("/")[2] for path in uploaded.asked if "/resolve/" in path}
    assert asked == {"config.yaml", "tokenizer.json", "model.safetensors"}
    names = {path.name for path in (tmp_path / "cache").rglob("*") if "snapshots" in path.parts and path.is_file()}
    assert names == asked


def test_what_is_there_is_data(uploaded):
    """A pickle in the place of the weights, an object in the place of the configuration."""
    files = uploaded.repositories["USER/NAME"][-1]
    uploaded.repositories["USER/NAME"].append(files | {"model.safetensors": b"\x80\x04cos\nsystem\n(S'false'\ntR."})
    with pytest.raises(UserError, match=r"model\.safetensors: damaged, or not an exported model"):
        load("hub:USER/NAME")
    uploaded.repositories["USER/NAME"].append(files | {"config.yaml": b"seed: !!python/object/apply:os.system [x]\n"})
    with pytest.raises(UserError, match=r"config\.yaml"):
        load("hub:USER/NAME")


def test_what_is_not_there(hub, monkeypatch):
    refused("hub:USER/NONE", "no such repository, or a private one that this login may not read")
    refused("hub:NONE", "expected USER/NAME")
    refused("hub:a/b/c", "expected USER/NAME")
    hub.repositories["USER/OTHER"] = [{"pytorch_model.bin": b""}]
    refused("hub:USER/OTHER", "not a model that char-lm export uploaded: it lacks config.yaml, ")
    monkeypatch.delenv("HF_TOKEN")
    refused("hub:USER/NONE", "no such repository")


def test_a_download_that_is_cut_short(uploaded, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between attempts
    uploaded.cut = 100
    refused("hub:USER/NAME", "hub:USER/NAME: ")
    uploaded.cut = 0
    assert load("hub:USER/NAME")


def test_without_a_network_the_cache_is_used(uploaded, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("hub:USER/NAME", "the Hub does not answer .*, and it was not downloaded before")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    load("hub:USER/NAME")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    capsys.readouterr()
    load("hub:USER/NAME")
    assert "using what was downloaded before" in capsys.readouterr().err


def test_uploads_are_refused_before_any_work(hub, monkeypatch, capsys):
    monkeypatch.setattr("lm.runs.export.read_chosen", lambda *_: pytest.fail("it was read"))

    def refuse(words, message):
        assert commands.export([str(PRETRAINED), *words.split()]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1

    refuse("--hub NAME", "--hub NAME: expected USER/NAME")
    refuse("--hub USER/NAME --format onnx", "--hub uploads what --format folder writes")
    refuse("--hub USER/NAME out", "give either the folder or file to make, or --hub USER/NAME")
    refuse("", "give either the folder or file to make, or --hub USER/NAME")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refuse("--hub USER/NAME", "the Hub does not answer")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    refuse("--hub USER/NAME", "nobody is logged in; run `hf auth login`, or set HF_TOKEN")
    assert hub.repositories == {}


def test_a_token_that_may_not_write(hub, monkeypatch, capsys):
    assert commands.export([str(PRETRAINED), "--hub", "OTHER/NAME"]) == 2
    assert "--hub OTHER/NAME: this login may not do that" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert commands.export([str(PRETRAINED), "--hub", "USER/NAME"]) == 2
    error = capsys.readouterr().err
    assert "--hub USER/NAME: this login may not do that" in error and error.count("\n") == 1 and hub.repositories == {}


def test_private_repositories(hub, capsys):
    assert commands.export([str(PRETRAINED), "--hub", "USER/NAME", "--private"]) == 0
    assert hub.private == {"USER/NAME"}
    assert commands.export([str(PRETRAINED), "--hub", "USER/NAME", "--private"]) == 0
    assert commands.export([str(PRETRAINED), "--hub", "USER/OPEN"]) == 0
    capsys.readouterr()
    assert commands.export([str(PRETRAINED), "--hub", "USER/OPEN", "--private"]) == 2
    assert "--hub USER/OPEN: it exists and is public; " in capsys.readouterr().err
    assert [len(commits) for commits in hub.repositories.values()] == [3, 2]


def test_a_process_of_its_own_without_a_network(tmp_path):
    """One line within a few seconds, by the variables that users set: no retries, no progress bars."""
    without = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = without | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}
    words = [sys.executable, "-m", "lm", "generate", "hub:USER/NAME"]
    start = time.monotonic()
    ran = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1), ran.stderr
    assert "hub:USER/NAME: the Hub does not answer" in ran.stderr and time.monotonic() - start < 60
