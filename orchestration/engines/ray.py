"""The Ray engine: Ray Data streams the plan through tasks and replicas, and its checkpoint is the ledger. All that knows Ray is here."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any, cast

import numpy as np

from orchestration import ledger
from orchestration.engines.assignment import Assignment
from orchestration.job import Resources
from workers import storage
from workers.guard import Guarded, committed, guard_here, left
from workers.stage import Stage

log = logging.getLogger(__name__)


def start(resources: Resources) -> bool:
    """Connect to a cluster (resources.ray_address, RAY_ADDRESS) or start one on this machine. False if the caller had done so already."""
    quiet = not log.isEnabledFor(logging.DEBUG)
    if quiet:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else its core writes over the progress bar
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine that the user did not ask for
    os.environ.setdefault("RAY_worker_niceness", "0")  # its default of 15 starves replicas beside anything else that runs here
    import ray
    import ray.data

    if quiet:
        logging.getLogger("ray").setLevel(logging.ERROR)
        logging.getLogger("ray.data").setLevel(logging.ERROR)

    if ray.is_initialized():
        return False
    address = resources.ray_address or os.environ.get("RAY_ADDRESS")
    for tries_left in (2, 1, 0):
        try:
            ray.init(
                address=address,
                include_dashboard=None if address else False,
                logging_level=logging.ERROR,
                log_to_driver=False,
                configure_logging=False,
            )
            break
        except Exception as error:  # Ray gives a starting node 30 s, which a busy machine can exceed; it raises a bare Exception
            ray.shutdown()
            if "timed out during startup" not in str(error) or not tries_left:
                raise
            log.warning("Ray did not start within its 30 s; trying again")
    return True


def stop() -> None:
    """Leave the cluster; what still runs there for this driver ends."""
    import ray

    ray.shutdown()


def capacity(resources: Resources) -> tuple[float, float]:
    """CPUs and GPUs of the cluster that `start` reached."""
    import ray

    found = ray.cluster_resources()
    return float(found.get("CPU", 1)), float(found.get("GPU", 0))


def run(work: Assignment, stop_event: threading.Event) -> None:
    """Run what is left of a generation. Returns when all its rows are committed; raises what stops a whole job.

    Ray's write tasks commit block by block, as `orchestration.ledger` says. Its own filter of committed rows is left out: its actors take a
    core each, so that on a small machine nothing else can start; ours is a function of the reading tasks.
    """
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.data.checkpoint import CheckpointConfig
    from ray.data.checkpoint.checkpoint_filter import CheckpointManager

    class CommitOnly(CheckpointManager):
        def load_checkpoint(self, *_: Any, **__: Any) -> tuple[None, int]:
            return None, 0

    fs, plan = storage.arrow_filesystem(work.folder.join_uri("plan", f"gen-{work.generation}"))
    _, data = storage.arrow_filesystem(work.folder.join_uri("data", f"gen-{work.generation}"))
    _, ledger_path = storage.arrow_filesystem(work.folder.join_uri("ledger", f"gen-{work.generation}"))

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = 0  # Ray would drop whole blocks and report success
    context.execution_options.verbose_progress = False
    context.checkpoint_config = CheckpointConfig(
        "row_id",
        ledger_path if work.folder.uri.startswith("/") else work.folder.join_uri("ledger", f"gen-{work.generation}"),
        delete_checkpoint_on_success=False,  # True, the default, would run a finished job again
        override_filesystem=fs,
        checkpoint_manager_cls=CommitOnly,
    )
    cpus, gpus = capacity(work.resources)
    dataset = ray.data.read_parquet(plan, filesystem=fs, partitioning=None)
    done = np.sort(ledger.committed(work.folder, work.generation))
    if len(done):
        dataset = dataset.map_batches(cast(Any, left), fn_args=(done,), batch_size=None, batch_format="pyarrow")
    dataset = dataset.repartition(target_num_rows_per_block=work.block_rows, strict=True)
    pools = sum(stage.pooled for stage in work.pipeline.stages)
    for stage in work.pipeline.stages:
        if stage.pooled:
            share = cpus_per_replica(work.resources, work.replicas, cpus)
            dataset = dataset.map_batches(
                Guarded,
                fn_constructor_args=(stage, work.post(separate_process=True), max(1, int(share))),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=cpus_reserved(stage.cpus, cpus, work.replicas * pools),
                num_gpus=gpus_per_replica(work.resources, stage, gpus),
                compute=ActorPoolStrategy(min_size=1, max_size=work.replicas, initial_size=work.replicas),
            )
        else:
            dataset = dataset.map_batches(
                cast(Any, guard_here),
                fn_args=(stage, work.post(separate_process=True)),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=stage.cpus,
            )
    dataset = dataset.map_batches(cast(Any, committed), fn_args=(work.pipeline.committed,), batch_size=None, batch_format="pyarrow")
    dataset.write_parquet(data, filesystem=fs, partition_cols=["status"])


def cpus_per_replica(resources: Resources, replicas: int, cpus: float) -> float:
    """Cores that one replica's model may use: as asked, else an equal share."""
    return resources.cpus_per_replica or max(1.0, cpus / replicas)


def cpus_reserved(wanted: float, cpus: float, replicas: int) -> float:
    """Cores that Ray keeps for one replica: as wanted, but one core of all stays free, else reading and decoding would wait for ever."""
    return min(wanted, max(0.0, cpus - 1) / replicas)


def gpus_per_replica(resources: Resources, stage: Stage, gpus: float) -> float:
    """GPUs of one replica: as asked, else what the stage wants where there are any."""
    return resources.gpus_per_replica if resources.gpus_per_replica is not None else stage.gpus if gpus else 0.0
