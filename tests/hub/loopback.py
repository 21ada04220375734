"""A Hub on this machine, for huggingface_hub, transformers and datasets: the server, and faults on demand.

It answers on 127.0.0.1 from a store in memory and keeps a list of all requests. Large files travel by the LFS
protocol; a client must be told not to use Xet (HF_HUB_DISABLE_XET), which is another service of another protocol.
"""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import ThreadingHTTPServer

from endpoints import Handler
from store import ATTRIBUTES, Repository


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests of ``method`` whose path matches ``path``.

    status: answered instead of the answer. drop: the connection ends after so many bytes of the body, of the upload
    where there is one, else of the answer. lost: it is done, and the connection ends without an answer. corrupt: the
    last byte of the answer is another. first: called before.
    """

    method: str
    path: str
    times: int = 1
    status: int | None = None
    drop: int | None = None
    lost: bool = False
    corrupt: bool = False
    first: Callable[[], object] | None = None


class LoopbackHub:
    """The server; ``with LoopbackHub() as hub`` starts and stops it."""

    def __init__(self):
        self.repositories, self.large, self.faults, self.requests = {}, {}, [], []
        self.lock = threading.RLock()
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def create(self, name, files=None, kind="models", private=False):
        """Put a repository there, with one commit of ``files`` (path to bytes) behind the Hub's own first one."""
        repository = self.repositories[kind, name] = Repository(kind, name, private)
        repository.commit({ATTRIBUTES: b"*.safetensors filter=lfs\n"}, message="initial commit")
        if files:
            repository.commit(files)
        return repository

    def fail(self, method, path, **what):
        """Let the next requests of that kind fail."""
        self.faults.append(Fault(method, path, **what))

    def fault_for(self, method, path):
        """Take a fault that is meant for this request."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None
