"""A TCP proxy whose connections can be cut, so that a lost connection is the network's doing and not the emulator's."""

import re
import socket
import struct
import threading


class Proxy:
    def __init__(self, connection_string):
        host, port = re.search(r"Endpoint=sb://([^:;/]+):(\d+)", connection_string).groups()
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open, self._lock, self._refuse = [], threading.Lock(), False
        own = f"Endpoint=sb://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connection_string = re.sub(r"Endpoint=sb://[^;]+", own, connection_string)
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        """Resets every connection; returns how many there were."""
        with self._lock:
            cut, self._open = self._open, []
        for side in cut:
            # A reset, not an orderly end.
            side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            try:
                side.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            side.close()
        return len(cut) // 2

    def refuse(self, refuse):
        """Whether new connections are closed at once."""
        self._refuse = refuse

    def close(self):
        self._listener.close()
        self.cut()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refuse:
                client.close()
                continue
            server = socket.create_connection(self._target)
            with self._lock:
                self._open += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    @staticmethod
    def _copy(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass
