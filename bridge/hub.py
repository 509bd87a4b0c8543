"""Models from the hub: what is fetched of a repository, and why one could not be. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bridge.errors import HubError, first_line
from bridge.files import is_full_disk

# What a folder in a stock layout needs. Weights come from sub-folders or from model*.safetensors,
# so the single-file checkpoints that many repositories keep beside them stay on the hub.
DEFAULT_PATTERNS = (
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "*/*.safetensors",
    "model*.safetensors",
)
# Pickled weights can run code when loaded; precision variants would only double the download.
NEVER_FETCHED = (
    "*.bin",
    "*.ckpt",
    "*.pt",
    "*.pth",
    "*.pkl",
    "*.pickle",
    "*.msgpack",
    "*.h5",
    "*.onnx",
    "*.onnx_data",
    "*.fp16.safetensors",
    "*.fp16-*.safetensors",
    "*.non_ema.safetensors",
)


def fetch(
    repo: str, revision: str | None, allow_patterns: Sequence[str] | None, otherwise: str
) -> Path:
    """Download a hub's repository, or find it in the local cache.

    Args:
        repo: its id, ``owner/name``.
        revision: branch, tag or commit.
        allow_patterns: the files wanted; by default all that a stock layout needs.
        otherwise: what else the caller may do, for the end of an error.

    Raises:
        HubError: it cannot be reached, or has no such repository for us.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    otherwise = f" {otherwise}"
    try:
        path = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=list(allow_patterns or DEFAULT_PATTERNS),
            ignore_patterns=list(NEVER_FETCHED),
            etag_timeout=5,
        )
    except HFValidationError as error:
        raise HubError(f"{repo!r} is no valid hub id ({first_line(error)}).{otherwise}") from error
    except GatedRepoError as error:
        raise HubError(
            f"The hub has {repo!r} but asks for an agreement first: accept its terms on its page, "
            f"then log in with `hf auth login`.{otherwise}"
        ) from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"The hub has no model {repo!r} (or it is private and this machine is not logged in). "
            f"Check the spelling.{otherwise}"
        ) from error
    except RevisionNotFoundError as error:
        raise HubError(f"{repo!r} has no revision {revision!r} on the hub.") from error
    # Connection, timeout, proxy, full disk: the exception classes differ between the hub
    # client's major versions (requests, httpx), so whatever else it raises is reported here.
    except Exception as error:
        if is_full_disk(error):
            raise HubError(
                f"{repo!r} could not be fetched from the hub: there is no room for it on the disk "
                f"({first_line(error)}). Make room, or set HF_HOME to a place that has some."
                f"{otherwise}"
            ) from error
        raise HubError(
            f"{repo!r} could not be fetched from the hub and is not in the local cache "
            f"({type(error).__name__}: {first_line(error)}). Go online once and retry, or fetch "
            f"it elsewhere with `hf download {repo}` and pass that folder as model.{otherwise}"
        ) from error
    return Path(path)
