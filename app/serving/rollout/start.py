"""What a service that starts finds in its state folder, and which version it serves first."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from app.artifact import open_artifact
from app.bundle.format.layout import read_info
from app.errors import MachineError, RayRecError
from app.serving.rollout.state import DesiredState, Version
from app.serving.rollout.state_dir import StateDir
from app.serving.versions.experiment import remove_other_experiments
from app.terminal.console import say


def version_of(bundle: Path) -> Version:
    """The version that a bundle is, without a share of the users.

    Raises:
        ArtifactError: it is damaged.
    """
    artifact = open_artifact(bundle, "bundle")
    label = read_info(bundle / "bundle.json").version or artifact.digest[:12]
    return Version(label, str(bundle), artifact.digest)


def publish_first(state_dir: StateDir, version: Version) -> DesiredState:
    """Publish what a service that starts serves: the version named, whatever was deployed before.

    Whoever names a bundle means it. Only after a crash does a service that is started just as before go on
    with what was deployed last. An experiment goes on whenever a service is started just as before, each user
    with the version of before; else it ends, and that is said.

    Raises:
        ArtifactError: the state folder cannot be read.
        MachineError: it cannot be written.
    """
    main, before = version, state_dir.desired_state()
    if before is not None and before.phase == "experiment":
        if before.started_with == version.digest and all(map(_is_whole, before.versions)):
            return _go_on(state_dir, replace(before, stopped=False))
        say(f"the experiment of {' and '.join(v.label for v in before.versions)} ends with this start")
    if before is not None and before.main.digest != version.digest:
        if before.started_with == version.digest and not before.stopped and _is_whole(before.main):
            main = before.main
            say(f"after a crash, the service goes on with version {main.label}, which was deployed last")
        else:
            say(f"the service starts with version {version.label}; {before.main.label} was deployed last")
    if main is version:
        main = replace(version, bundle=str(state_dir.keep_bundle(Path(version.bundle), version.digest)))
    desired = DesiredState([replace(main, share=1.0)], started_with=version.digest)
    if before is not None:
        desired = replace(desired, experiment=before.experiment)
    return _go_on(state_dir, desired)


def _go_on(state_dir: StateDir, desired: DesiredState) -> DesiredState:
    """Publish a state that a service begins with, and remove what is not of it."""
    if desired.phase == "experiment":
        say(f"the experiment of {' and '.join(v.label for v in desired.versions)} goes on")
    state_dir.publish(desired)
    state_dir.remove_other_bundles({version.bundle for version in desired.versions})
    state_dir.remove_snapshots()
    state_dir.take_commands()  # nobody waits for their results any more
    remove_old_exposures(state_dir, desired)
    return desired


def remove_old_exposures(state_dir: StateDir, desired: DesiredState) -> None:
    """Keep who was served in the last experiment, whose report can still be asked for, and drop the rest."""
    salt = desired.experiment.salt if desired.experiment else ""
    try:
        remove_other_experiments(state_dir.folder.parent, salt)
    except MachineError as error:  # it grows, which harms nobody today
        say(f"rows of earlier experiments stay: {error}")


def _is_whole(version: Version) -> bool:
    try:
        return version_of(Path(version.bundle)).digest == version.digest
    except RayRecError:
        return False
