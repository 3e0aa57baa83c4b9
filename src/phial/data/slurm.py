"""Slurm, as far as datatrove leaves it open: tasks already in its queue are not sent a second time.

Two tasks of one rank would write the same file at the same time.
"""

from __future__ import annotations

import shlex
import subprocess
from importlib.metadata import distribution
from pathlib import Path

from phial.errors import PhialError

_JOB = "slurm_job"  # file of a phase's logs


def environment() -> str:
    """The shell command that lets a job find the program by which datatrove runs a task."""
    installed = [file for file in distribution("datatrove").files or () if file.name == "launch_pickled_pipeline"]
    folders = [str(Path(str(file.locate())).resolve().parent) for file in installed]
    return f"export PATH={shlex.quote(':'.join(folders))}:$PATH" if folders else ""


def remember(logs: Path, job: str) -> None:
    """Note the job that has the tasks of a phase."""
    (logs / _JOB).write_text(job, "utf-8")


def refuse_twice(logs: Path, what: str) -> None:
    """Raises PhialError while the job noted for a phase is still queued or running, or where there is no Slurm."""
    jobs = (logs / _JOB).read_text("utf-8") if (logs / _JOB).exists() else ""
    command = ["squeue", "--noheader", *(["--jobs", jobs] if jobs else ["--me"])]
    try:
        queue = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise PhialError("Slurm is not installed here: there is no squeue", "use --executor local or ray") from error
    if jobs and queue.returncode == 0 and queue.stdout.strip():  # it fails for a job that is long over
        raise waiting(what, f"the tasks of job {jobs}")


def waiting(what: str, which: str) -> PhialError:
    """The error that says that Slurm has the tasks."""
    hint = "run the same command again when they are done; what is finished is not repeated"
    return PhialError(f"{what}: {which} are with Slurm", hint)
