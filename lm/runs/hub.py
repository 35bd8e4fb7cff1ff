"""Exported models in repositories of the Hugging Face Hub: `hub:USER/NAME` where a run is asked for, and uploads.

A repository holds the files of an export (lm/runs/export.py). Only these files are downloaded, all of one commit, into
the cache of `huggingface_hub`, and they are read as any export is: as data. The environment variables of that library
apply: HF_TOKEN, HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE.
"""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from lm.config.options import Config
from lm.corpora.sources import hub_answers
from lm.files import UserError

PREFIX = "hub:"
FILES = ("config.yaml", "tokenizer.json", "model.safetensors")
"""What is downloaded. The large file is the last one: a repository without the others is refused before it."""
NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
NO_ANSWER = "the Hub does not answer (no network, or HF_HUB_OFFLINE is set)"


def download(name: str) -> Path:
    """The folder of an exported model on the Hub; without a network, what was downloaded before.

    Args:
        name: hub:USER/NAME, or hub:USER/NAME@REVISION for a branch, a tag or a commit.

    Raises:
        UserError: there is no such model, it cannot be read, or the download is incomplete.
    """
    from huggingface_hub import hf_hub_download

    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    _check_name(repository, name)
    online = hub_answers()
    with _refusing(name):
        commit = revision or None
        for file in FILES:
            path = Path(hf_hub_download(repository, file, revision=commit, local_files_only=not online))
            commit = path.parent.name  # all of one commit, whatever is uploaded meanwhile
    if not online:
        print(f"{name}: {NO_ANSWER}; using what was downloaded before", file=sys.stderr)
    return path.parent


def check_upload(repository: str) -> None:
    """Check that files can be uploaded to USER/NAME, before any work is done for it.

    Raises:
        UserError: this is no such name, nobody is logged in, or the Hub does not answer.
    """
    from huggingface_hub import get_token

    _check_name(repository, f"--hub {repository}")
    if get_token() is None:
        raise UserError("--hub: nobody is logged in; run `hf auth login`, or set HF_TOKEN to a token that may write")
    if not hub_answers():
        raise UserError(f"--hub {repository}: {NO_ANSWER}")


def upload(repository: str, files: dict[str, bytes], private: bool) -> str:
    """Commit files to a repository, which is made unless it exists. Returns its address.

    Raises:
        UserError: the Hub refuses it, or `private` and the repository is public. All files are in one commit, so that
            nothing has then changed.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    with _refusing(f"--hub {repository}"):
        api = HfApi()
        url = api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.model_info(repository).private:
            raise UserError("it exists and is public; make it private at its address, or choose another name")
        added = [CommitOperationAdd(name, data) for name, data in files.items()]
        api.create_commit(repository, added, commit_message="Upload a model with char-lm export")
        return str(url)


def front_matter(config: Config) -> bytes:
    """The head of README.md that the Hub reads."""
    tags = ["char-lm", "character-level", *config.mixer_name.split("+")]
    about = {"library_name": "char-lm", "pipeline_tag": "text-generation", "tags": tags}
    return f"---\n{yaml.safe_dump(about, sort_keys=False)}---\n".encode()


def _check_name(repository: str, shown: str) -> None:
    if not NAME.fullmatch(repository):
        raise UserError(f"{shown}: expected USER/NAME, as in the address of a model on the Hub")


def _reason(error: Exception) -> str:
    """What went wrong, in a line: the library's own messages have several, and a number of the request."""
    from huggingface_hub import errors

    reasons = (
        (errors.GatedRepoError, "its owner has to grant access first"),
        (errors.RepositoryNotFoundError, "no such repository, or a private one that this login may not read"),
        (errors.RevisionNotFoundError, "no such revision"),
        (errors.LocalEntryNotFoundError, f"{NO_ANSWER}, and it was not downloaded before"),
        (errors.EntryNotFoundError, "not a model that char-lm export uploaded: it lacks " + ", ".join(FILES)),
    )
    for kind, reason in reasons:
        if isinstance(error, kind):
            return reason
    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
        return "this login may not do that; see `hf auth whoami`, or set HF_TOKEN to another token"
    cause: BaseException = error
    while cause.__cause__ is not None:  # such as "Error while uploading" from what the server answered
        cause = cause.__cause__
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]


@contextmanager
def _refusing(problem: str) -> Iterator[None]:
    """Turn any error of `huggingface_hub` into a UserError, and leave out its log lines and progress bars."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logs, bars = logging.root.manager.disable, not are_progress_bars_disabled()
    logging.disable()
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    except Exception as error:
        raise UserError(f"{problem}: {_reason(error)}") from None
    finally:
        logging.disable(logs)
        if bars:
            enable_progress_bars()
