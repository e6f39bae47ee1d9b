// What becomes of a message that was received under a lock.
import assert from "node:assert/strict";
import { SOON, bodies, check, code, eventually, nothing, send, take } from "./support.js";

const SHORTEST_LOCK = "PT5S";

check("a completed message is gone", async ({ client, queue, admin }) => {
  const name = await queue();
  await send(client, name, "a");
  const receiver = client.createReceiver(name);
  const [message] = await take(receiver, 1);
  await receiver.completeMessage(message);
  await assert.rejects(receiver.completeMessage(message), /already settled/);
  assert.equal((await admin.getQueueRuntimeProperties(name)).totalMessageCount, 0);
});

check("an abandoned message comes back with a higher count", async ({ client, queue }) => {
  const name = await queue();
  await send(client, name, "a", "b");
  const receiver = client.createReceiver(name);
  for (const count of [0, 1, 2]) {
    const [message] = await take(receiver, 1);
    assert.deepEqual([message.body, message.deliveryCount], ["a", count]);
    await receiver.abandonMessage(message);
  }
});

check("abandoning can change properties", async ({ client, queue }) => {
  const name = await queue();
  await send(client, name, { body: "a", applicationProperties: { kept: 1, changed: 1 } });
  const receiver = client.createReceiver(name);
  await receiver.abandonMessage((await take(receiver, 1))[0], { changed: 2, added: "x" });
  const [message] = await take(receiver, 1);
  assert.deepEqual(message.applicationProperties, { kept: 1, changed: 2, added: "x" });
});

check("a dead letter keeps reason, description and properties", async ({ client, queue }) => {
  const name = await queue();
  await send(client, name, { body: "bad", applicationProperties: { kept: 1 } }, "good");
  const receiver = client.createReceiver(name);
  const [message] = await take(receiver, 1);
  await receiver.deadLetterMessage(message, { deadLetterReason: "malformed", deadLetterErrorDescription: "no such field: ☃", added: "x" });
  assert.deepEqual(bodies(await take(receiver, 1)), ["good"]);
  const letters = client.createReceiver(name, { subQueueType: "deadLetter" });
  const [letter] = await take(letters, 1);
  assert.equal(letter.body, "bad");
  assert.equal(letter.deadLetterReason, "malformed");
  assert.equal(letter.deadLetterErrorDescription, "no such field: ☃");
  assert.equal(letter.applicationProperties.kept, 1);
  assert.equal(letter.applicationProperties.added, "x");
  await letters.completeMessage(letter);
  await nothing(letters, 200);
});

check("too many deliveries make a dead letter", async ({ client, queue }) => {
  const name = await queue({ maxDeliveryCount: 2 });
  await send(client, name, "a");
  const receiver = client.createReceiver(name);
  for (const _ of [1, 2]) await receiver.abandonMessage((await take(receiver, 1))[0]);
  const [letter] = await take(client.createReceiver(name, { subQueueType: "deadLetter" }), 1);
  assert.equal(letter.deadLetterReason, "MaxDeliveryCountExceeded");
});

check("a deferred message is received by its number only", async ({ client, queue }) => {
  const name = await queue();
  await send(client, name, "a", "b");
  const receiver = client.createReceiver(name);
  const [message] = await take(receiver, 1);
  await receiver.deferMessage(message);
  assert.deepEqual(bodies(await take(receiver, 1)), ["b"]);
  const [peeked] = await receiver.peekMessages(1, { fromSequenceNumber: message.sequenceNumber });
  assert.equal(peeked.state, "deferred");
  const [deferred] = await receiver.receiveDeferredMessages(message.sequenceNumber);
  assert.equal(deferred.body, "a");
  await receiver.completeMessage(deferred);
  await assert.rejects(receiver.receiveDeferredMessages(message.sequenceNumber), code("MessageNotFound"));
});

check("a deferred message can be abandoned and dead-lettered", async ({ client, queue }) => {
  const name = await queue();
  await send(client, name, "a");
  const receiver = client.createReceiver(name);
  const [message] = await take(receiver, 1);
  await receiver.deferMessage(message);
  const [first] = await receiver.receiveDeferredMessages([message.sequenceNumber]);
  await receiver.abandonMessage(first);
  const [second] = await receiver.receiveDeferredMessages([message.sequenceNumber]);
  await receiver.deadLetterMessage(second, { deadLetterReason: "late", deadLetterErrorDescription: "why" });
  const [letter] = await take(client.createReceiver(name, { subQueueType: "deadLetter" }), 1);
  assert.deepEqual([letter.deadLetterReason, letter.deadLetterErrorDescription], ["late", "why"]);
});

check("a renewed lock lasts longer", async ({ client, queue }) => {
  const name = await queue({ lockDuration: SHORTEST_LOCK });
  await send(client, name, "a");
  const receiver = client.createReceiver(name);
  const [message] = await take(receiver, 1);
  const first = message.lockedUntilUtc;
  // The clock has to show another time than at the receipt.
  const renewed = await eventually(async () => {
    const until = await receiver.renewMessageLock(message);
    return until > first && until;
  });
  assert.ok(renewed.getTime() - Date.now() <= 6000);
  await receiver.completeMessage(message);
});

check("a handler's lock is renewed as long as it works", async ({ client, queue, admin }) => {
  const name = await queue({ lockDuration: SHORTEST_LOCK });
  await send(client, name, "a");
  const receiver = client.createReceiver(name, { maxAutoLockRenewalDurationInMs: 30_000 });
  let seen = 0;
  const errors = [];
  const handled = new Promise((resolve) => {
    receiver.subscribe({
      async processMessage() {
        seen += 1;
        // Longer than the lock.
        await nothing(client.createReceiver(name), 7000);
        resolve();
      },
      async processError({ error }) {
        errors.push(error);
      },
    });
  });
  await handled;
  await receiver.close();
  assert.deepEqual([seen, errors], [1, []]);
  assert.equal((await admin.getQueueRuntimeProperties(name)).totalMessageCount, 0);
});

check("a message whose lock ran out comes back and cannot be settled", async ({ client, queue }) => {
  // Long enough for all the refusals to come before the other's locks run out.
  const name = await queue({ lockDuration: "PT10S" });
  await send(client, name, "a", "b", "c", "d", "e");
  const slow = client.createReceiver(name, { maxAutoLockRenewalDurationInMs: 0 });
  const other = client.createReceiver(name);
  const late = await take(slow, 5);
  const again = await take(other, 5, 2 * SOON);
  assert.deepEqual(again.map((m) => m.deliveryCount), [1, 1, 1, 1, 1]);
  const [a, b, c, d, e] = late;
  await assert.rejects(slow.completeMessage(a), code("MessageLockLost"));
  await assert.rejects(slow.abandonMessage(b), code("MessageLockLost"));
  await assert.rejects(slow.deferMessage(c), code("MessageLockLost"));
  await assert.rejects(slow.deadLetterMessage(d), code("MessageLockLost"));
  await assert.rejects(slow.renewMessageLock(e), code("MessageLockLost"));
  // The other's locks were not touched.
  for (const message of again) await other.completeMessage(message);
  await nothing(other, 200);
});
