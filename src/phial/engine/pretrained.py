"""Fetching a model file from a Hugging Face repository by a glob pattern, for Llama.from_pretrained.

HF_ENDPOINT and HF_TOKEN are read when called, not when imported. Files land in huggingface_hub's own cache or in
`local_dir`; phial's store (phial pull) is another place and not involved.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from phial.errors import ArgumentError, PhialError

StrPath = str | os.PathLike[str]


def fetch(
    repo_id: str,
    filename: str | None,
    additional_files: Sequence[str] | None = None,
    local_dir: StrPath | None = None,
    cache_dir: StrPath | None = None,
) -> Path:
    """Download the one file of the repository that matches, and the additional ones; return the first one's path.

    Raises:
        ArgumentError: a pattern matches no file, or several; also a ValueError.
        PhialError: the repository cannot be listed or a file cannot be fetched.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HFValidationError

    if not filename:
        raise ArgumentError(
            f"filename is {filename!r}", 'name a file of the repository or a pattern such as "*q4.gguf"'
        )
    endpoint = os.environ.get("HF_ENDPOINT") or None
    token = os.environ.get("HF_TOKEN") or None
    try:
        files = HfApi(endpoint=endpoint, token=token).list_repo_files(repo_id)
    except HFValidationError as error:
        raise ArgumentError(f"{repo_id!r} is no repository name: {error}", "the form is owner/name") from error
    except Exception as error:  # the client raises a dozen kinds, of its own and of its HTTP library
        raise PhialError(f"cannot list {repo_id}: {_first_line(error)}", "check the name and the network") from error
    options: dict[str, Any] = {
        "endpoint": endpoint,
        "token": token,
        "local_dir": local_dir,
        "cache_dir": cache_dir,
    }
    wanted = [_only_match(repo_id, files, pattern) for pattern in (filename, *(additional_files or ()))]
    paths = []
    for name in wanted:
        try:
            paths.append(hf_hub_download(repo_id, name, **options))
        except Exception as error:
            raise PhialError(f"cannot fetch {name} of {repo_id}: {_first_line(error)}", "try again") from error
    return Path(paths[0])


def _only_match(repo_id: str, files: Sequence[str], pattern: str) -> str:
    matching = [name for name in files if fnmatch(name, pattern)]
    if len(matching) == 1:
        return matching[0]
    listed = ", ".join(matching or files) or "nothing"
    found = "no file" if not matching else f"{len(matching)} files"
    raise ArgumentError(f"{found} in {repo_id} match {pattern!r}", f"exactly one must; there: {listed}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
