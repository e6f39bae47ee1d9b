// Scheduled messages, time to live, duplicate detection.
import assert from "node:assert/strict";
import { bodies, check, eventually, nothing, send, take } from "./support.js";

const inMs = (ms) => new Date(Date.now() + ms);

check("a scheduled message comes when it is due", async ({ client, queue }) => {
  const name = await queue();
  const due = inMs(2000);
  const sender = client.createSender(name);
  const receiver = client.createReceiver(name);
  const [number] = await sender.scheduleMessages({ body: "later" }, due);
  await sender.sendMessages({ body: "now" });
  assert.deepEqual(bodies(await take(receiver, 1)), ["now"]);
  const [peeked] = await receiver.peekMessages(1, { fromSequenceNumber: number });
  assert.equal(peeked.state, "scheduled");
  assert.deepEqual(bodies(await take(receiver, 1)), ["later"]);
  assert.ok(Date.now() >= due.getTime() - 5);
});

check("a property schedules as well", async ({ client, queue }) => {
  const name = await queue();
  const due = inMs(1500);
  await send(client, name, { body: "later", scheduledEnqueueTimeUtc: due });
  await take(client.createReceiver(name), 1);
  assert.ok(Date.now() >= due.getTime() - 5);
});

check("several are scheduled at once and come in order of time", async ({ client, queue }) => {
  const name = await queue();
  const sender = client.createSender(name);
  const numbers = await sender.scheduleMessages([{ body: "c" }, { body: "d" }], inMs(1500));
  assert.equal(numbers.length, 2);
  await sender.scheduleMessages({ body: "a" }, inMs(500));
  assert.deepEqual(bodies(await take(client.createReceiver(name), 3)), ["a", "c", "d"]);
});

check("a cancelled message never comes", async ({ client, queue }) => {
  const name = await queue();
  const sender = client.createSender(name);
  const numbers = await sender.scheduleMessages([{ body: "never" }, { body: "never" }], inMs(1000));
  await sender.cancelScheduledMessages(numbers);
  await sender.scheduleMessages({ body: "after" }, inMs(1200));
  const receiver = client.createReceiver(name);
  assert.deepEqual(bodies(await take(receiver, 1)), ["after"]);
  assert.deepEqual(bodies(await receiver.peekMessages(5, { fromSequenceNumber: numbers[0] })), ["after"]);
});

check("an expired message is gone", async ({ client, queue, admin }) => {
  const name = await queue();
  await send(client, name, { body: "short", timeToLive: 1000 });
  await eventually(async () => (await admin.getQueueRuntimeProperties(name)).totalMessageCount === 0);
  await send(client, name, "next");
  assert.deepEqual(bodies(await take(client.createReceiver(name), 1)), ["next"]);
});

check("an expired message becomes a dead letter where the queue says so", async ({ client, queue }) => {
  const name = await queue({ deadLetteringOnMessageExpiration: true, defaultMessageTimeToLive: "PT1S" });
  await send(client, name, "short");
  const [letter] = await take(client.createReceiver(name, { subQueueType: "deadLetter" }), 1);
  assert.deepEqual([letter.body, letter.deadLetterReason], ["short", "TTLExpiredException"]);
});

check("duplicates within the window are swallowed", async ({ client, queue }) => {
  const name = await queue({ requiresDuplicateDetection: true, duplicateDetectionHistoryTimeWindow: "PT20S" });
  for (const [body, messageId] of [["first", "a"], ["again", "a"], ["other", "b"]]) await send(client, name, { body, messageId });
  await send(client, name, { body: "batch again", messageId: "b" }, { body: "third", messageId: "c" });
  const receiver = client.createReceiver(name);
  const messages = await take(receiver, 3);
  assert.deepEqual(bodies(messages), ["first", "other", "third"]);
  for (const message of messages) await receiver.completeMessage(message);
  // A completed message's id is remembered.
  await send(client, name, { body: "still", messageId: "a" }, { body: "fourth", messageId: "d" });
  assert.deepEqual(bodies(await take(receiver, 1)), ["fourth"]);
  await nothing(receiver, 200);
});
