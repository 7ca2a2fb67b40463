"""To and from the Hugging Face Hub: a download fetches what its size needs, an upload is one commit.

huggingface_hub does the transport: cache, offline mode, tokens and resuming are its own. This file adds
which files a size needs, one pinned commit for all of them, and sha256 on arrival.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from croppable.manifest import CONFIG, INDEX, LABELS, METRICS, Manifest
from croppable.safe import CheckpointError, SafeFile, brief
from croppable.writer import OWN_FILES, save

__all__ = ["HubError", "hub_errors", "pull", "push_to_hub"]

CARD = "README.md"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


class HubError(OSError):
    """The Hub could not be reached, or said no; the message says what to do."""


@contextmanager
def hub_errors(repo_id: str, revision: str | None, action: str) -> Iterator[None]:
    """Turn what huggingface_hub and the network raise inside the block into one `HubError`.

    Args:
        repo_id: The repository in question.
        revision: The revision asked for, if any.
        action: What is tried, for the message: "download", "push to".

    Raises:
        HubError: If anything inside the block failed on the way to the Hub or there; says what to do.
    """
    from huggingface_hub import errors

    at = f" at revision {revision!r}" if revision else ""
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise HubError(
            f"'{repo_id}' has no revision {revision!r}: name a branch, tag or commit of it"
        ) from error
    except errors.EntryNotFoundError as error:
        raise HubError(_absent(repo_id, at, error)) from error
    except (errors.RepositoryNotFoundError, errors.GatedRepoError) as error:
        raise HubError(
            f"there is neither a folder '{repo_id}' nor, for you, such a Hub repository: check the name, and "
            f"for a private one log in with 'hf auth login' or set HF_TOKEN to a token that may read it"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "none"
        hint = "log in with 'hf auth login' or set HF_TOKEN to a token that may do this"
        hint = hint if status in (401, 403) else "try again later"
        raise HubError(f"the Hub refused to {action} '{repo_id}'{at} (status {status}): {hint}") from error
    except (OSError, RuntimeError) as error:
        # The client's own network errors are no OSError in every version: it wraps them in these two.
        raise HubError(_broken(repo_id, at, action, error)) from error
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests")):
            raise
        raise HubError(_broken(repo_id, at, action, error)) from error


def _absent(repo_id: str, at: str, error: Exception) -> str:
    from huggingface_hub.errors import LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"'{repo_id}'{at} is not, or not completely, in the cache and the Hub cannot be reached: go "
            f"online and load this size once, or load a size that is there"
        )
    return f"'{repo_id}'{at} lacks a file of a croppable checkpoint: it was not pushed with croppable"


def _broken(repo_id: str, at: str, action: str, error: Exception) -> str:
    return (
        f"the connection broke while trying to {action} '{repo_id}'{at} ({brief(str(error))}): try again, "
        f"what has arrived in full is kept"
    )


def pull(
    repo_id: str,
    size: int | None = None,
    revision: str | None = None,
    *,
    weights: bool = True,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Download what a size needs into the Hub's cache.

    The first file pins the commit, so that a push in between cannot mix two versions. Before any segment is
    fetched its size on the Hub is compared with the promise, afterwards its sha256.

    Args:
        repo_id: "name/model".
        size: Any size up to the full one; default the full one.
        revision: Branch, tag or commit; default the main branch.
        weights: Whether to fetch segments and labels, or only what describes them.
        token: As in huggingface_hub; default the one you logged in with.
        cache_dir: As in huggingface_hub.

    Returns:
        The snapshot's folder, for `croppable.load`.

    Raises:
        FileNotFoundError: If ``repo_id`` can be no repository, and so was meant as a folder.
        HubError: If the Hub cannot be reached or has no such thing.
        CheckpointError: If it serves something else than the checkpoint promises.
        ValueError: If the size does not fit.
    """
    if not REPOSITORY.fullmatch(repo_id):
        raise FileNotFoundError(
            f"there is no folder '{repo_id}', and a Hub repository is called 'name/model'"
        )
    with hub_errors(repo_id, revision, "download"):
        from huggingface_hub import hf_hub_download

        options: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "library_name": "croppable"}
        folder = Path(hf_hub_download(repo_id, CONFIG, revision=revision, **options)).parent
        options["revision"] = commit = folder.name
        hf_hub_download(repo_id, INDEX, **options)
        manifest = Manifest.read(folder)
        wanted = _wanted(manifest, size) if weights else []
        missing = [name for name in wanted if not (folder / name).exists()]
        _check_sizes(repo_id, folder, manifest, missing, token)
        for name in missing:
            hf_hub_download(repo_id, name, **options)
            _check_content(folder, name, manifest)
        _pull_metrics(repo_id, commit, options)
    return folder


def _wanted(manifest: Manifest, size: int | None) -> list[str]:
    size = manifest.check_size(size)
    return [*manifest.files_for(size), *([LABELS] if LABELS in manifest.files else [])]


def _pull_metrics(repo_id: str, commit: str, options: dict[str, Any]) -> None:
    """Fetch metrics.json where there is one; nothing that is loaded depends on it."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    known = try_to_load_from_cache(repo_id, METRICS, revision=commit, cache_dir=options["cache_dir"])
    if known is None:
        try:
            hf_hub_download(repo_id, METRICS, **options)
        except EntryNotFoundError:
            return  # without metrics, or offline: a checkpoint is complete without them


def _check_sizes(
    repo_id: str, folder: Path, manifest: Manifest, names: Sequence[str], token: str | bool | None
) -> None:
    """Refuse before the download what has other sizes on the Hub than config.json promises."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if not names or HF_HUB_OFFLINE:
        return
    infos = HfApi(token=token).get_paths_info(repo_id, list(names), revision=folder.name)
    sizes = {info.path: getattr(info, "size", None) for info in infos}
    for name in names:
        nbytes, _ = manifest.files[name]
        if sizes.get(name) != nbytes:
            raise CheckpointError(
                f"{repo_id}/{name}",
                f"{sizes[name]} bytes on the Hub" if name in sizes else "no file on the Hub",
                f"{nbytes} bytes, as its config.json promises",
                "ask its author to push it again",
            )


def _check_content(folder: Path, name: str, manifest: Manifest) -> None:
    """Compare what has just arrived with its sha256; what differs does not stay in the cache."""
    nbytes, sha256 = manifest.files[name]
    try:
        with SafeFile(folder, name, nbytes) as file:
            file.check_sha256(sha256)
    except CheckpointError:
        (folder / name).resolve().unlink(missing_ok=True)
        (folder / name).unlink(missing_ok=True)
        raise


def push_to_hub(
    model_or_folder: nn.Module | str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    message: str = "Upload a croppable model",
    **card: Any,
) -> str:
    """Publish a checkpoint on the Hugging Face Hub, in one commit.

    A README.md in the folder is published as it is; without one a card is written (`croppable.card`).
    Segments of an older version that the new one does not have are removed in the same commit; other files
    of the repository are left alone.

    Args:
        model_or_folder: A saved checkpoint, or a model that `croppable.save` takes as it is.
        repo_id: "name/model"; created if it does not exist.
        private: Whether a new repository is private; default as your account is set.
        revision: Branch to commit to; default the main branch.
        token: As in huggingface_hub; default the one you logged in with.
        message: The commit's message.
        card: What `croppable.card.model_card` takes, such as ``license`` or ``command``.

    Returns:
        The commit's id, which ``load(..., revision=...)`` takes.

    Raises:
        CheckpointError: If the folder holds no valid checkpoint.
        HubError: If the Hub cannot be reached or refuses.
    """
    if isinstance(model_or_folder, nn.Module):
        with tempfile.TemporaryDirectory() as temporary:
            folder = save(model_or_folder, Path(temporary, "model"))
            return push_to_hub(
                folder, repo_id, private=private, revision=revision, token=token, message=message, **card
            )
    folder = Path(model_or_folder)
    names = _publishable(folder)
    with hub_errors(repo_id, revision, "push to"):
        return _commit(folder, names, repo_id, private, revision, token, message, card)


def _publishable(folder: Path) -> list[str]:
    """Return the files to publish, once everything that config.json promises is there."""
    from croppable.card import PICTURE

    manifest = Manifest.read(folder)
    for name, (nbytes, sha256) in manifest.files.items():
        with SafeFile(folder, name, nbytes) as file:
            file.check_sha256(sha256)
    others = (CARD, METRICS, PICTURE, "curves.png", "training_config.json", "history.json")
    return [CONFIG, INDEX, *manifest.files, *(name for name in others if (folder / name).is_file())]


def _commit(
    folder: Path,
    names: Iterable[str],
    repo_id: str,
    private: bool | None,
    revision: str | None,
    token: str | bool | None,
    message: str,
    card: dict[str, Any],
) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    content: dict[str, Any] = {name: folder / name for name in names}
    if CARD not in content:
        from croppable.card import model_card

        content[CARD] = model_card(folder, repo_id=repo_id, **card).encode()
    stale = [
        path
        for path in api.list_repo_files(repo_id, revision=revision)
        if path not in content and any(Path(path).match(pattern) and "/" not in path for pattern in OWN_FILES)
    ]
    operations: list[Any] = [CommitOperationAdd(name, item) for name, item in content.items()]
    operations += [CommitOperationDelete(path) for path in stale]
    return str(api.create_commit(repo_id, operations, commit_message=message, revision=revision).oid)
