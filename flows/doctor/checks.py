"""The table of all checks, and the examination."""

from collections.abc import Mapping
from types import MappingProxyType

from flows.doctor import archive, clock, files, gpu, machine, network, programs, services, store, weights
from flows.doctor.case import Case, Check, Diagnosis, warn

CHECKS: Mapping[str, tuple[Check, ...]] = MappingProxyType(
    {
        "Programs": (
            Check(
                "Python",
                "The interpreter is Python 3.12.",
                "use Python 3.12: `make setup` gets it, `uv venv --python 3.12` too",
                programs.python,
            ),
            Check(
                "packages",
                "Every package is installed, in a version that superscene works with.",
                "install superscene anew into an environment of its own: `make setup`, or `pip install superscene`",
                programs.packages,
            ),
            Check(
                "locked versions",
                "In a checkout, packages have the versions of requirements.lock, with which the tests run.",
                "`make setup` installs the tested versions",
                programs.lock,
            ),
            Check(
                "encoding",
                "Texts and names of files are UTF-8, so that names with accents can be read and shown.",
                "set LANG=C.UTF-8, or PYTHONUTF8=1",
                programs.encoding,
            ),
            Check(
                "threads",
                "OMP_NUM_THREADS and its like give the workers together no more threads than there are cores: threads "
                "that wait for each other make a network many times slower.",
                "unset the variable: each worker gets its share of the cores by itself",
                programs.threads,
            ),
        ),
        "GPU": (
            Check(
                "GPU driver",
                "An NVIDIA card has its driver; without one, runs go on the CPU.",
                "install the NVIDIA driver; in a container, start it with `--gpus all` (NVIDIA Container Toolkit)",
                gpu.driver,
            ),
            Check(
                "torch build",
                "Where there is a GPU, torch is a build that can use it.",
                "install torch from the index for your CUDA version, as pytorch.org/get-started tells",
                gpu.build,
            ),
            Check(
                "CUDA",
                "The driver is new enough for torch's CUDA, and torch finds the GPU.",
                "update the NVIDIA driver, or install a torch for an older CUDA; look at CUDA_VISIBLE_DEVICES too",
                gpu.cuda,
            ),
            Check(
                "GPU memory",
                "A GPU has some GB of free memory: other programs may fill it.",
                "end what `nvidia-smi` shows there, or choose another GPU by CUDA_VISIBLE_DEVICES",
                gpu.memory,
            ),
        ),
        "Machine": (
            Check(
                "cores",
                "There are as many cores, in this container too, as RUN.yaml asks workers for.",
                "say `resources: {actors: auto}`, or give the container more cores (`--cpus`)",
                machine.cores,
            ),
            Check(
                "memory",
                "The free memory, in this container too, suffices for a worker on each core.",
                "end other programs, give the container more (`--memory`), or say `resources: {actors: 1}`",
                machine.memory,
            ),
            Check(
                "shared memory",
                "Shared memory (/dev/shm) has room for Ray's object store; Docker gives a container 64 MB.",
                "start the container with `--shm-size=1g`",
                machine.shared_memory,
            ),
            Check(
                "open files",
                "A process may have enough files open.",
                "`ulimit -n 65536` before the run, or LimitNOFILE=65536 of the service",
                machine.open_files,
            ),
            Check(
                "processes",
                "There may be enough processes and threads: Ray starts hundreds.",
                "`ulimit -u 16384`, or give the container more (`--pids-limit`)",
                machine.processes,
            ),
            Check(
                "clock",
                "The clock is not before this program's installation; certificates would not be valid.",
                "set the clock: `timedatectl set-ntp true`",
                clock.installed,
            ),
        ),
        "Network": (
            Check(
                "localhost",
                "The name localhost is this machine; Prefect's embedded server is reached by it.",
                "add the line `127.0.0.1 localhost` to /etc/hosts",
                network.localhost,
            ),
            Check(
                "proxies",
                "HTTP_PROXY and its like leave out this machine itself: a proxy cannot reach Prefect and Ray here.",
                "set NO_PROXY=localhost,127.0.0.1 (and no_proxy), and write proxies as http://host:port",
                network.proxies,
            ),
            Check(
                "ports",
                "The ports are free that `superscene serve`, `prefect server start` and `ray start --head` take.",
                "end the process, or choose another port: `--port`, and `--dashboard-port` of Ray's dashboard",
                network.ports,
            ),
            Check(
                "metrics port",
                "The port that SUPERSCENE_METRICS_PORT names is free.",
                "choose another port, or unset SUPERSCENE_METRICS_PORT",
                network.metrics_port,
            ),
            Check(
                "Ray address",
                "Where RAY_ADDRESS names a cluster, it answers.",
                "start the cluster, correct RAY_ADDRESS, or unset it to run on this machine",
                network.ray_address,
            ),
            Check(
                "Prefect address",
                "Where PREFECT_API_URL names a server, it answers.",
                "start it (`prefect server start`), correct PREFECT_API_URL, or unset it: a run has its own",
                network.prefect_server,
            ),
        ),
        "Folders": (
            Check(
                "temporary files",
                "The folder for temporary files can be written.",
                "set TMPDIR, and SUPERSCENE_SCRATCH where it is set, to a folder that you may write",
                files.writable,
            ),
            Check(
                "room for them",
                "The folder for temporary files has room: Ray's logs, spilled objects and downloads go there.",
                "make room, or set TMPDIR (and SUPERSCENE_SCRATCH) to a folder on a larger disk",
                files.room,
            ),
            Check(
                "noexec",
                "Programs may be run from the folder for temporary files, as compiled networks are.",
                "mount it without noexec, or set TMPDIR to another folder",
                files.executable,
            ),
            Check(
                "Ray's sockets",
                "The path of Ray's folder is short: the system cuts names of sockets at 107 bytes.",
                "set RAY_TMPDIR to a short path, such as /tmp",
                files.sockets,
            ),
            Check(
                "Prefect's folder",
                "~/.prefect, or PREFECT_HOME, can be written; in containers the home folder is often read-only.",
                "set PREFECT_HOME, or HOME, to a folder that you may write",
                files.home,
            ),
            Check(
                "weights folder",
                "The folder of weight files can be read, and is not both empty and closed.",
                "set SUPERSCENE_WEIGHTS to a folder that you may write",
                weights.stored,
            ),
        ),
        "RUN.yaml": (
            Check(
                "settings",
                "RUN.yaml says nothing that cannot be done.",
                "correct RUN.yaml: docs/run-yaml.md lists every setting",
                services.settings,
            ),
            Check(
                "needed weights",
                "Every model that RUN.yaml names has its weight file.",
                "`superscene weights fetch NAME`, or name a file in RUN.yaml as `weights: {NAME: FILE}`",
                weights.needed,
            ),
            Check(
                "spelling",
                "Places are spelled as on the disk. Unlike Windows and macOS, Linux tells large letters from small.",
                "write the path as it is spelled on the disk, or rename what lies there",
                archive.spelling,
            ),
        ),
        "Archive": (
            Check(
                "archive",
                "archive.root is a folder, a tar archive or a URL that is there.",
                "correct `archive: {root: …}` in RUN.yaml; in a container, mount the folder (`-v`)",
                archive.root,
            ),
            Check(
                "archive's level",
                "archive.root is the archive's own folder, not one above or below it.",
                "name the folder that the README's table of layouts describes as `archive: {root: …}`",
                archive.level,
            ),
            Check(
                "archive's files",
                "A few hundred files of the archive can be opened.",
                "give this user the right to read them (`chmod -R a+rX`), mend links, and look at the disk",
                archive.readable,
            ),
            Check(
                "downloads",
                "No unfinished or empty download lies in the archive's folder.",
                "finish the download, compare its size or hash, and remove what is left over",
                archive.unfinished,
            ),
            Check(
                "times of files",
                "No file of the archive or the store is from the future.",
                "set the clock, and `touch` the files",
                clock.future_files,
            ),
        ),
        "Store": (
            Check(
                "store",
                "The store's folder can be written, or can be made.",
                "give `store:` a folder that you may write; in a container, mount it without `:ro`",
                store.place,
            ),
            Check(
                "store's owner",
                "What lies in the store belongs to whoever runs this.",
                "run as the owner, or give the store to one user: `chown -R USER STORE`; containers: `--user`",
                store.owner,
            ),
            Check(
                "store's disk",
                "The store's disk has room; `superscene plan RUN.yaml` tells how much a run takes.",
                "make room, or give `store:` a folder on a larger disk, or a URL of object storage",
                store.room,
            ),
            Check(
                "inodes",
                "The store's file system can hold more files; many small ones may fill it while bytes are free.",
                "remove small files there, or give `store:` another file system; a larger `shard_size` means fewer",
                store.inodes,
            ),
            Check(
                "file system",
                "The store's file system has locks, and is a disk of this machine.",
                "one machine at a time may write there; give a bucket's URL (s3://…) rather than mounting it",
                store.file_system,
            ),
            Check(
                "store's clock",
                "The store's file system has the same time as this machine.",
                "let both machines set their clocks by NTP",
                clock.file_system,
            ),
            Check(
                "writer",
                "No run is writing to the store, and none was stopped before its end.",
                "wait for the run that is there; one that was stopped goes on by the same command, its lease runs out "
                "within a minute",
                store.writer,
            ),
            Check(
                "bucket",
                "Object storage answers, and takes the credentials of the environment.",
                "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION (and AWS_ENDPOINT_URL), or "
                "GOOGLE_APPLICATION_CREDENTIALS; files such as ~/.aws/credentials are not read",
                store.bucket,
            ),
            Check(
                "bucket's clock",
                "Object storage has the same time: S3 refuses requests that are a quarter of an hour off.",
                "set the clock: `timedatectl set-ntp true`",
                clock.object_storage,
            ),
        ),
        "Services": (
            Check(
                "leftovers",
                "No Prefect or Ray server of a killed run is left running.",
                "the next run ends Prefect's; `ray stop` ends Ray's, if it is not a cluster that you use",
                services.orphans,
            ),
            Check(
                "Prefect",
                "Prefect's settings can be read.",
                "see the message, and `prefect config view`",
                services.prefect,
            ),
            Check(
                "Ray",
                "Ray starts here, or the cluster of RAY_ADDRESS takes this machine as a driver.",
                "see the message; `ray stop --force` ends a stale cluster, `pip check` tells of misfits",
                services.ray,
            ),
        ),
    }
)
"""Every check by subject; those of RUN.yaml, archive and store are made where one is given."""


def examine(case: Case) -> list[Diagnosis]:
    """Return what every check that applies finds; starting Ray takes some seconds."""
    found = []
    for check in (check for subject in CHECKS.values() for check in subject):
        try:
            finding = check.look(case)
        except Exception as error:  # noqa: BLE001  # one look that fails must not keep the others from being told
            finding = warn(f"could not be looked at: {type(error).__name__}: {error}")
        if finding is not None:
            advice = "" if finding.state == "ok" else check.advice
            found.append(Diagnosis(check.name, finding.state, finding.found, advice))
    return found
