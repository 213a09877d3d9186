"""Have Slurm start Dask workers for `idxflow run --workers`, by dask-jobqueue.

On a login node, with the Python that runs idxflow (`.venv/bin/pip install dask-jobqueue`, once), in a folder that the
nodes see, too:

    .venv/bin/python examples/slurm_cluster.py certificates --print      # the script that Slurm gets, and nothing else
    .venv/bin/python examples/slurm_cluster.py certificates --jobs 8     # stays; Ctrl-C ends the jobs

`certificates` is a folder with ca.pem, workers.pem and workers-key.pem; docs/how-to/workers.md says how to make them.
Change what your Slurm wants besides: account, partition, memory.
"""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dask_jobqueue import SLURMCluster


def cluster_of(options: argparse.Namespace) -> SLURMCluster:
    """Start the scheduler in this process; no job yet."""
    from dask_jobqueue import SLURMCluster
    from distributed.security import Security

    authority, certificate, key = (
        str((options.certificates / name).resolve()) for name in ("ca.pem", "workers.pem", "workers-key.pem")
    )
    roles = ("scheduler", "worker", "client")
    tls = {f"tls_{role}_cert": certificate for role in roles} | {f"tls_{role}_key": key for role in roles}
    return SLURMCluster(
        queue=options.partition,
        account=options.account,
        walltime=options.time,
        # A process for each core, because a step computes on one thread.
        cores=options.cores,
        processes=options.cores,
        memory=options.memory,
        python=sys.executable,
        job_script_prologue=[f"cd {Path.cwd()}"],
        # Workers keep their cache of the store on the node's own disk.
        local_directory="/tmp",
        protocol="tls",
        security=Security(tls_ca_file=authority, require_encryption=True, **tls),
        scheduler_options={"port": options.port, "dashboard": False},
    )


def main() -> None:
    """Start the cluster, say how to use it, and keep it until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("certificates", type=Path)
    parser.add_argument("--jobs", type=int, default=4, help="jobs of Slurm, a node or a part of one each")
    parser.add_argument("--cores", type=int, default=8, help="of a job")
    parser.add_argument("--memory", default="16 GiB", help="of a job")
    parser.add_argument("--time", default="04:00:00", help="after which Slurm ends a job")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--port", type=int, default=8786, help="of the scheduler, on this machine")
    parser.add_argument("--print", action="store_true", help="print the script of a job, and end")
    options = parser.parse_args()
    with cluster_of(options) as cluster:
        if options.print:
            print(cluster.job_script())
            return
        cluster.scale(jobs=options.jobs)
        print(f"export IDXFLOW_WORKERS={cluster.scheduler_address}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("ending the jobs")


if __name__ == "__main__":
    main()
