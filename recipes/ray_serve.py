"""Serves an artifact with Ray Serve; a replica that dies loses no request.

python recipes/ray_serve.py artifacts/demo --replicas 2 --port 8000
"""

from __future__ import annotations

import argparse
import os
import signal

from ray import serve

from ssruntime.server.ray_app import RaySettings, ray_app


def main() -> None:
    """Serves until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray sends usage data to its vendor otherwise
    serve.start(http_options={"host": "127.0.0.1", "port": given.port})
    settings = RaySettings(min_replicas=given.replicas, max_replicas=given.replicas, max_sequences=4, threads=1)
    serve.run(ray_app(given.artifact, settings), route_prefix="/")
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    serve.shutdown()


if __name__ == "__main__":
    main()
