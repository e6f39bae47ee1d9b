// Sessions: named, next available, held, state, lock.
import assert from "node:assert/strict";
import { SOON, bodies, check, code, connect, eventually, nothing, send, take } from "./support.js";

const SESSIONS = { requiresSession: true };
const SHORT = { requiresSession: true, lockDuration: "PT8S" };
const inSession = (sessionId, ...texts) => texts.map((body) => ({ body, sessionId }));

check("a named session gets its messages only", async ({ client, queue }) => {
  const name = await queue(SESSIONS);
  await send(client, name, ...inSession("a", "a1", "a2"), ...inSession("b", "b1"));
  const b = await client.acceptSession(name, "b");
  assert.equal(b.sessionId, "b");
  assert.ok(b.sessionLockedUntilUtc > new Date());
  const [message] = await take(b, 1);
  assert.deepEqual([message.body, message.sessionId], ["b1", "b"]);
  await b.completeMessage(message);
  await nothing(b, 200);
  await b.close();
  const a = await client.acceptSession(name, "a");
  assert.deepEqual(bodies(await take(a, 2)), ["a1", "a2"]);
  await a.close();
});

check("next available receivers get different sessions", async ({ client, queue }) => {
  const name = await queue(SESSIONS);
  await send(client, name, ...inSession("a", "a"), ...inSession("b", "b"), ...inSession("c", "c"));
  const receivers = [await client.acceptNextSession(name), await client.acceptNextSession(name), await client.acceptNextSession(name)];
  assert.deepEqual(receivers.map((receiver) => receiver.sessionId).sort(), ["a", "b", "c"]);
  for (const receiver of receivers) {
    assert.deepEqual(bodies(await take(receiver, 1)), [receiver.sessionId]);
    await receiver.close();
  }
});

check("the next available session is waited for", async ({ client, queue }) => {
  const name = await queue(SESSIONS);
  const waiting = client.acceptNextSession(name);
  await send(client, name, ...inSession("late", "x"));
  const receiver = await waiting;
  assert.equal(receiver.sessionId, "late");
  await receiver.close();
});

check("no session available is a timeout", async ({ queue, after }) => {
  const name = await queue(SESSIONS);
  const client = connect(undefined, { maxRetries: 0, timeoutInMs: 1000 });
  after(() => client.close());
  await assert.rejects(client.acceptNextSession(name), code("ServiceTimeout"));
});

check("a session that is held cannot be locked", async ({ client, queue, after }) => {
  const name = await queue(SESSIONS);
  await send(client, name, ...inSession("a", "x"));
  const holder = await client.acceptSession(name, "a");
  const other = connect(undefined, { maxRetries: 0, timeoutInMs: 5000 });
  after(() => other.close());
  await assert.rejects(other.acceptSession(name, "a"), code("SessionCannotBeLocked"));
  // The holder has lost nothing.
  await holder.completeMessage((await take(holder, 1))[0]);
});

check("a closed receiver leaves its session to the next one", async ({ client, queue }) => {
  const name = await queue(SESSIONS);
  await send(client, name, ...inSession("a", "x"));
  const first = await client.acceptSession(name, "a");
  await take(first, 1);
  await first.close();
  const second = await client.acceptSession(name, "a");
  const [message] = await take(second, 1);
  assert.equal(message.body, "x");
  await second.completeMessage(message);
});

check("order is kept after an abandon", async ({ client, queue }) => {
  const name = await queue(SESSIONS);
  await send(client, name, ...inSession("a", "1", "2", "3"));
  const receiver = await client.acceptSession(name, "a");
  await receiver.abandonMessage((await take(receiver, 1))[0]);
  const seen = [];
  while (seen.length < 3) {
    const [message] = await take(receiver, 1);
    seen.push(message.body);
    await receiver.completeMessage(message);
  }
  assert.deepEqual(seen, ["1", "2", "3"]);
});

check("state is kept beyond the receiver", async ({ client, queue }) => {
  const name = await queue(SESSIONS);
  const first = await client.acceptSession(name, "a");
  assert.ok(!(await first.getSessionState()));
  await first.setSessionState({ step: 2 });
  await first.close();
  const second = await client.acceptSession(name, "a");
  assert.deepEqual(await second.getSessionState(), { step: 2 });
  await second.setSessionState(null);
  assert.ok(!(await second.getSessionState()));
});

check("a renewed session lock lasts longer", async ({ client, queue }) => {
  const name = await queue(SESSIONS);
  const receiver = await client.acceptSession(name, "a");
  const first = receiver.sessionLockedUntilUtc;
  await eventually(async () => (await receiver.renewSessionLock()) > first);
});

check("a session's lock is renewed as long as its receiver lives", async ({ client, queue }) => {
  const name = await queue(SHORT);
  await send(client, name, ...inSession("a", "x"));
  const receiver = await client.acceptSession(name, "a", { maxAutoLockRenewalDurationInMs: 30_000 });
  const first = receiver.sessionLockedUntilUtc;
  const [message] = await take(receiver, 1);
  await eventually(() => Date.now() > first.getTime() + 1000, 2 * SOON);
  await receiver.completeMessage(message);
});

check("a session lock that ran out is lost", async ({ client, queue }) => {
  const name = await queue(SHORT);
  await send(client, name, ...inSession("a", "x"));
  const slow = await client.acceptSession(name, "a", { maxAutoLockRenewalDurationInMs: 0 });
  const [late] = await take(slow, 1);
  await eventually(() => new Date() > slow.sessionLockedUntilUtc);
  const other = await client.acceptSession(name, "a");
  const [again] = await take(other, 1);
  await assert.rejects(slow.completeMessage(late), code("SessionLockLost"));
  await assert.rejects(slow.renewSessionLock(), code("SessionLockLost"));
  await other.completeMessage(again);
});

check("peek in a session shows that session", async ({ client, queue }) => {
  const name = await queue(SESSIONS);
  await send(client, name, ...inSession("a", "a1"), ...inSession("b", "b1", "b2"));
  const receiver = await client.acceptSession(name, "b");
  assert.deepEqual(bodies(await receiver.peekMessages(5)), ["b1", "b2"]);
});

check("a deferred message belongs to its session", async ({ client, queue }) => {
  const name = await queue(SESSIONS);
  await send(client, name, ...inSession("a", "x"));
  const receiver = await client.acceptSession(name, "a");
  const [message] = await take(receiver, 1);
  await receiver.deferMessage(message);
  const [deferred] = await receiver.receiveDeferredMessages(message.sequenceNumber);
  await receiver.completeMessage(deferred);
});

check("a dead letter of a session is read without one", async ({ client, queue }) => {
  const name = await queue(SESSIONS);
  await send(client, name, ...inSession("a", "x"));
  const receiver = await client.acceptSession(name, "a");
  await receiver.deadLetterMessage((await take(receiver, 1))[0], { deadLetterReason: "r" });
  const [letter] = await take(client.createReceiver(name, { subQueueType: "deadLetter" }), 1);
  assert.deepEqual([letter.sessionId, letter.deadLetterReason], ["a", "r"]);
});

check("sessions are required where the queue says so", async ({ client, queue }) => {
  const name = await queue(SESSIONS);
  await assert.rejects(send(client, name, "without"));
  await assert.rejects(client.createReceiver(name).receiveMessages(1, { maxWaitTimeInMs: 1000 }));
  await assert.rejects(client.acceptSession(await queue(), "a"));
});
