// Sending and receiving.
import assert from "node:assert/strict";
import { bodies, check, code, connect, nothing, send, take } from "./support.js";

const BYTES = Buffer.from(Array.from({ length: 256 }, (_, i) => i));

check("one message arrives", async ({ client, queue }) => {
  const name = await queue();
  await send(client, name, "hello");
  const receiver = client.createReceiver(name);
  const [message] = await take(receiver, 1);
  assert.equal(message.body, "hello");
  assert.equal(message.deliveryCount, 0);
  assert.equal(message.sequenceNumber.toString(), "1");
  assert.ok(message.enqueuedTimeUtc instanceof Date);
  assert.ok(message.lockedUntilUtc > message.enqueuedTimeUtc);
  assert.match(message.lockToken, /^[0-9a-f-]{36}$/);
  await receiver.completeMessage(message);
});

check("every property arrives as it was sent", async ({ client, queue }) => {
  const name = await queue();
  const sent = {
    body: { a: [1, null, "☃"] },
    messageId: "id-1",
    correlationId: "c-1",
    subject: "order.placed",
    contentType: "application/json",
    to: "somewhere",
    replyTo: "back",
    replyToSessionId: "s-2",
    timeToLive: 300_000,
    applicationProperties: { text: "naïve ☃", int: 7, negative: -1, large: 2 ** 40, float: 0.5, yes: true, no: false, none: null },
  };
  await send(client, name, sent);
  const [message] = await take(client.createReceiver(name), 1);
  for (const [field, value] of Object.entries(sent)) assert.deepEqual(message[field], value, field);
  assert.equal(message.expiresAtUtc.getTime() - message.enqueuedTimeUtc.getTime(), 300_000);
});

for (const [kind, body] of [["empty", Buffer.alloc(0)], ["one byte", Buffer.from([0])], ["all bytes", BYTES]]) {
  check(`a body of bytes arrives: ${kind}`, async ({ client, queue }) => {
    const name = await queue();
    await send(client, name, { body });
    const [message] = await take(client.createReceiver(name, { skipParsingBodyAsJson: true }), 1);
    assert.deepEqual(Buffer.from(message.body), body);
  });
}

for (const [bodyType, body] of [["value", { a: "x" }], ["sequence", [["a", 1], ["b"]]]]) {
  check(`an AMQP ${bodyType} arrives`, async ({ client, queue }) => {
    const name = await queue();
    await send(client, name, { bodyType, body });
    const [message] = await take(client.createReceiver(name), 1);
    assert.equal(message._rawAmqpMessage.bodyType, bodyType);
    assert.deepEqual(message.body, body);
  });
}

check("a list arrives in order", async ({ client, queue }) => {
  const name = await queue();
  const sent = Array.from({ length: 200 }, (_, i) => String(i));
  await send(client, name, ...sent);
  const messages = await take(client.createReceiver(name), 200);
  assert.deepEqual(bodies(messages), sent);
  assert.deepEqual(messages.map((m) => m.sequenceNumber.toNumber()), sent.map((_, i) => i + 1));
});

check("a batch is filled until it refuses", async ({ client, queue }) => {
  const name = await queue();
  const sender = client.createSender(name);
  const batch = await sender.createMessageBatch();
  assert.equal(batch.maxSizeInBytes, 256 * 1024);
  while (batch.tryAddMessage({ body: "x".repeat(10_000) }));
  assert.ok(batch.count > 20);
  await sender.sendMessages(batch);
  const receiver = client.createReceiver(name);
  await take(receiver, batch.count);
  await nothing(receiver);
});

check("a large message arrives whole", async ({ client, queue }) => {
  const name = await queue();
  const body = Buffer.concat(Array(1000).fill(BYTES));
  await send(client, name, { body });
  const receiver = client.createReceiver(name, { skipParsingBodyAsJson: true });
  const [message] = await take(receiver, 1);
  assert.deepEqual(Buffer.from(message.body), body);
  await receiver.completeMessage(message);
});

check("a message over the limit is refused and the next one goes", async ({ client, queue }) => {
  const name = await queue();
  const sender = client.createSender(name);
  await assert.rejects(sender.sendMessages({ body: Buffer.alloc(300_000) }), code("MessageSizeExceeded"));
  await sender.sendMessages({ body: "fits" });
  assert.deepEqual(bodies(await take(client.createReceiver(name), 1)), ["fits"]);
});

check("receive and delete leaves nothing", async ({ client, queue, admin }) => {
  const name = await queue();
  await send(client, name, "a", "b");
  assert.deepEqual(bodies(await take(client.createReceiver(name, { receiveMode: "receiveAndDelete" }), 2)), ["a", "b"]);
  assert.equal((await admin.getQueueRuntimeProperties(name)).totalMessageCount, 0);
});

check("a receive that finds nothing drains its credit", async ({ client, queue }) => {
  const name = await queue();
  const first = client.createReceiver(name);
  await nothing(first, 300);
  await send(client, name, "a");
  // With credit left at the first receiver the message would be on its way there.
  assert.deepEqual(bodies(await take(client.createReceiver(name), 1, 3000)), ["a"]);
});

check("a receive that finds less than it asked for drains the rest", async ({ client, queue }) => {
  const name = await queue();
  await send(client, name, "a");
  const first = client.createReceiver(name);
  assert.deepEqual(bodies(await first.receiveMessages(10, { maxWaitTimeInMs: 500 })), ["a"]);
  await send(client, name, "b");
  assert.deepEqual(bodies(await take(client.createReceiver(name), 1, 3000)), ["b"]);
  await send(client, name, "c");
  assert.deepEqual(bodies(await take(first, 1, 3000)), ["c"]);
});

check("a waiting receiver gets what comes", async ({ client, queue }) => {
  const name = await queue();
  const receiver = client.createReceiver(name);
  const waiting = take(receiver, 1);
  await send(client, name, "later");
  assert.deepEqual(bodies(await waiting), ["later"]);
});

check("a subscription handles messages as they come and completes them", async ({ client, queue, admin }) => {
  const name = await queue();
  const seen = [];
  const receiver = client.createReceiver(name);
  const { promise, resolve, reject } = deferred();
  receiver.subscribe(
    {
      async processMessage(message) {
        seen.push(message.body);
        if (seen.length === 30) resolve();
      },
      async processError({ error }) {
        reject(error);
      },
    },
    { maxConcurrentCalls: 5 },
  );
  const sent = Array.from({ length: 30 }, (_, i) => String(i));
  await send(client, name, ...sent);
  await promise;
  await receiver.close();
  assert.deepEqual(seen, sent);
  assert.equal((await admin.getQueueRuntimeProperties(name)).totalMessageCount, 0);
});

check("a failed handler abandons its message", async ({ client, queue }) => {
  const name = await queue();
  await send(client, name, "a");
  const counts = [];
  const receiver = client.createReceiver(name);
  const { promise, resolve } = deferred();
  receiver.subscribe({
    async processMessage(message) {
      counts.push(message.deliveryCount);
      if (counts.length < 3) throw new Error("as the check wants it");
      resolve();
    },
    async processError() {},
  });
  await promise;
  await receiver.close();
  assert.deepEqual(counts, [0, 1, 2]);
});

check("iterating sees each message", async ({ client, queue }) => {
  const name = await queue();
  await send(client, name, "a", "b", "c");
  const receiver = client.createReceiver(name);
  const seen = [];
  for await (const message of receiver.getMessageIterator({ maxWaitTimeInMs: 1000 })) {
    if (message) {
      seen.push(message.body);
      await receiver.completeMessage(message);
    }
    if (seen.length === 3) break;
  }
  assert.deepEqual(seen, ["a", "b", "c"]);
});

check("peek shows without locking", async ({ client, queue }) => {
  const name = await queue();
  await send(client, name, "a", "b", "c");
  const receiver = client.createReceiver(name);
  const peeked = await receiver.peekMessages(2);
  assert.deepEqual(bodies(peeked), ["a", "b"]);
  assert.equal(peeked[0].state, "active");
  // A receiver goes on where it stopped.
  assert.deepEqual(bodies(await receiver.peekMessages(2)), ["c"]);
  assert.deepEqual(bodies(await receiver.peekMessages(5, { fromSequenceNumber: peeked[1].sequenceNumber })), ["b", "c"]);
  for (const message of await take(receiver, 3)) await receiver.completeMessage(message);
  assert.deepEqual(await receiver.peekMessages(5, { fromSequenceNumber: peeked[0].sequenceNumber }), []);
});

check("thirty clients at once", async ({ client, queue }) => {
  const name = await queue();
  const clients = Array.from({ length: 30 }, () => connect());
  try {
    await Promise.all(clients.map((other, number) => send(other, name, String(number))));
    const seen = bodies(await take(client.createReceiver(name), 30)).map(Number);
    assert.deepEqual(seen.sort((a, b) => a - b), [...Array(30).keys()]);
  } finally {
    await Promise.all(clients.map((other) => other.close()));
  }
});

function deferred() {
  let resolve, reject;
  const promise = new Promise((ok, fail) => ([resolve, reject] = [ok, fail]));
  return { promise, resolve, reject };
}
