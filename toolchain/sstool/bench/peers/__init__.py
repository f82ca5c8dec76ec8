"""Other engines for the same checkpoint, each in a process and an environment of its own."""

from __future__ import annotations

from sstool.bench.peers.known import PEERS, Peer, parse_peers
from sstool.bench.peers.process import PeerError, PeerProcess, PeerSetup, PeerTask

__all__ = ["PEERS", "Peer", "PeerError", "PeerProcess", "PeerSetup", "PeerTask", "parse_peers"]
