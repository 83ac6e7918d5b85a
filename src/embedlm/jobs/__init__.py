"""What every long job shares: atomic writes, a lock, a manifest, resuming, rejects and progress."""

from embedlm.jobs.atomic import disk_errors, new_folder, replace_folder, set_aside, write_file
from embedlm.jobs.folder import Job
from embedlm.jobs.progress import progress
from embedlm.jobs.rejects import Reject

__all__ = [
    "Job",
    "Reject",
    "disk_errors",
    "new_folder",
    "progress",
    "replace_folder",
    "set_aside",
    "write_file",
]
