// What every check starts from: clients of the official SDK, and entities of its own that go with it.
//
// SERVICEBUS_CONNECTION_STRING names the AMQP endpoint, SERVICEBUS_ADMIN_CONNECTION_STRING the HTTPS one, whose
// certificate NODE_EXTRA_CA_CERTS vouches for.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { ServiceBusAdministrationClient, ServiceBusClient } from "@azure/service-bus";

export const AMQP = process.env.SERVICEBUS_CONNECTION_STRING;
// A check that waits for something that comes waits this long for it at most.
export const SOON = 10_000;
// Failures come within the check's time.
export const RETRY = { maxRetries: 1, retryDelayInMs: 50, timeoutInMs: 10_000 };

export const unique = (kind) => `${kind}-${randomUUID().slice(0, 13)}`;
export const connect = (connectionString = AMQP, retryOptions = RETRY) => new ServiceBusClient(connectionString, { retryOptions });

// The check gets a client, the administration client and makers of entities; what was made goes with it.
export function check(name, body) {
  test(name, { timeout: 60_000 }, async () => {
    const undo = [];
    const client = connect();
    const admin = new ServiceBusAdministrationClient(process.env.SERVICEBUS_ADMIN_CONNECTION_STRING);
    const context = {
      client,
      admin,
      after: (step) => undo.push(step),
      async queue(options) {
        const queue = unique("queue");
        await admin.createQueue(queue, options);
        undo.push(() => admin.deleteQueue(queue));
        return queue;
      },
      async topic(options) {
        const topic = unique("topic");
        await admin.createTopic(topic, options);
        undo.push(() => admin.deleteTopic(topic));
        return topic;
      },
      // With rules ({filter, action}) instead of the default one, if there are any.
      async subscription(topic, options, ...rules) {
        const subscription = unique("sub");
        await admin.createSubscription(topic, subscription, options);
        if (rules.length > 0) await admin.deleteRule(topic, subscription, "$Default");
        for (const [number, { filter, action }] of rules.entries()) {
          await admin.createRule(topic, subscription, `rule${number}`, filter, action);
        }
        return subscription;
      },
    };
    // Before the runner gives up on it, so that the client is closed and the process can end.
    const done = new AbortController();
    const late = sleep(50_000, undefined, { signal: done.signal }).then(
      () => assert.fail("still running after 50 s"),
      () => {},
    );
    try {
      await Promise.race([body(context), late]);
    } finally {
      done.abort();
      await client.close();
      for (const step of undo.reverse()) await step();
    }
  });
}

export async function send(client, address, ...messages) {
  const sender = client.createSender(address);
  await sender.sendMessages(messages.map((message) => (typeof message === "string" ? { body: message } : message)));
  await sender.close();
}

// Exactly `count` messages; fewer within `wait` milliseconds fail the check.
export async function take(receiver, count, wait = SOON) {
  const taken = [];
  const deadline = Date.now() + wait;
  while (taken.length < count) {
    const left = deadline - Date.now();
    assert.ok(left > 0, `${taken.length} of ${count} messages after ${wait} ms`);
    taken.push(...(await receiver.receiveMessages(count - taken.length, { maxWaitTimeInMs: left })));
  }
  return taken;
}

// The quiet window that shows absence where there is no later message to show it.
export async function nothing(receiver, quiet = 500) {
  const found = await receiver.receiveMessages(1, { maxWaitTimeInMs: quiet });
  assert.deepEqual(found.map((message) => message.body), []);
}

export const bodies = (messages) => messages.map((message) => message.body);

// Asks until the answer is true.
export async function eventually(question, wait = SOON) {
  const deadline = Date.now() + wait;
  for (;;) {
    const answer = await question();
    if (answer) return answer;
    assert.ok(Date.now() < deadline, `not after ${wait} ms`);
    await sleep(20);
  }
}

// The rejection has this code of the SDK.
export const code = (code) => (error) => {
  assert.equal(error.code, code, `${error.name} ${error.code}: ${error.message}`);
  return true;
};
