// A TCP proxy whose connections can be cut, so that a lost connection is the network's doing and not the emulator's.
import net from "node:net";
import { AMQP } from "./support.js";

export async function proxy() {
  const [, host, port] = AMQP.match(/Endpoint=sb:\/\/([^:;/]+):(\d+)/);
  const open = new Set();
  let refuse = false;
  let refused = 0;
  const listener = net.createServer((near) => {
    if (refuse) {
      refused += 1;
      near.destroy();
      return;
    }
    const far = net.connect(Number(port), host);
    const pair = { near, far };
    open.add(pair);
    for (const [source, sink] of [[near, far], [far, near]]) {
      source.pipe(sink);
      source.on("error", () => sink.destroy());
      source.on("close", () => open.delete(pair));
    }
  });
  await new Promise((ready) => listener.listen(0, "127.0.0.1", ready));
  // Ends every connection; returns how many there were.
  const cut = () => {
    const pairs = [...open];
    open.clear();
    for (const { near, far } of pairs) {
      near.destroy();
      far.destroy();
    }
    return pairs.length;
  };
  return {
    connectionString: AMQP.replace(/Endpoint=sb:\/\/[^;]+/, `Endpoint=sb://127.0.0.1:${listener.address().port}`),
    cut,
    refuse: (on) => (refuse = on),
    refused: () => refused,
    async close() {
      cut();
      await new Promise((closed) => listener.close(closed));
    },
  };
}
