// Connections that are lost, and clients that come back by themselves.
import assert from "node:assert/strict";
import { bodies, check, connect, eventually, send, take } from "./support.js";
import { proxy } from "./proxy.js";

const PATIENT = { maxRetries: 20, retryDelayInMs: 100, maxRetryDelayInMs: 200, timeoutInMs: 5000 };

async function unsteady(after) {
  const between = await proxy();
  const client = connect(between.connectionString, PATIENT);
  after(() => between.close());
  after(() => client.close());
  return { between, client };
}

check("a sender comes back", async ({ client, queue, after }) => {
  const name = await queue();
  const { between, client: far } = await unsteady(after);
  const sender = far.createSender(name);
  await sender.sendMessages({ body: "before" });
  assert.equal(between.cut(), 1);
  await sender.sendMessages({ body: "after" });
  assert.deepEqual(bodies(await take(client.createReceiver(name), 2)), ["before", "after"]);
});

check("a receiver comes back", async ({ client, queue, after }) => {
  const name = await queue();
  const { between, client: far } = await unsteady(after);
  const receiver = far.createReceiver(name);
  await send(client, name, "before");
  await receiver.completeMessage((await take(receiver, 1))[0]);
  assert.equal(between.cut(), 1);
  await send(client, name, "after");
  const [message] = await take(receiver, 1);
  assert.equal(message.body, "after");
  await receiver.completeMessage(message);
});

check("a subscription goes on after an outage", async ({ client, queue, after }) => {
  const name = await queue();
  const { between, client: far } = await unsteady(after);
  const seen = [];
  const receiver = far.createReceiver(name);
  receiver.subscribe({
    async processMessage(message) {
      seen.push(message.body);
    },
    async processError() {},
  });
  await send(client, name, "before");
  await eventually(() => seen.length === 1);
  between.refuse(true);
  between.cut();
  await send(client, name, "after");
  await eventually(() => between.refused() > 0);
  between.refuse(false);
  await eventually(() => seen.length === 2, 20_000);
  assert.deepEqual(seen, ["before", "after"]);
});

check("a message held over a lost connection can be completed", async ({ client, queue, admin, after }) => {
  const name = await queue();
  const { between, client: far } = await unsteady(after);
  await send(client, name, "held");
  const receiver = far.createReceiver(name);
  const [message] = await take(receiver, 1);
  between.cut();
  // The lock is the queue's, not the connection's: the SDK completes it by its token.
  await receiver.completeMessage(message);
  assert.equal((await admin.getQueueRuntimeProperties(name)).totalMessageCount, 0);
});
