"""moto's S3 server as a process of its own, told on standard input which requests are to fail.

A line in is {"kind": ..., "status": ..., "times": ..., "every": ...}, a `Fault`; {} ends what is left of all faults.
The answer, a line out, is how many requests each kind has hit so far.
"""

import json
import sys
from collections import Counter

from tests.infra.s3_server import Fault, s3_server


def _injected(faults: list[tuple[Fault, int]]) -> dict[str, int]:
    count: Counter[str] = Counter()
    for fault, times in faults:
        count[f"status {fault.status}" if fault.kind == "status" else fault.kind] += times - fault.times
    return dict(count)


def main() -> None:
    """Serve until the input ends; the first line out holds what a process needs to find the server."""
    told: list[tuple[Fault, int]] = []
    with s3_server() as server:
        print(json.dumps(server.environment()), flush=True)
        for line in sys.stdin:
            wanted = json.loads(line)
            with server.lock:
                server.requests.clear()  # nobody reads them here, and a soak makes millions
                if wanted:
                    fault = Fault(**wanted)
                    told.append((fault, fault.times))
                    server.faults.append(fault)
                else:
                    server.faults.clear()
            print(json.dumps(_injected(told)), flush=True)


if __name__ == "__main__":
    main()
