// Topics, and each kind of filter; rules by the data plane, too.
import assert from "node:assert/strict";
import { bodies, check, send, take } from "./support.js";

// A message that every subscription here gets: what came before it is all that comes.
const END = { filter: { sqlExpression: "finish = 1" } };
const end = { body: "end", applicationProperties: { finish: 1 } };

async function until(client, topic, subscription) {
  const receiver = client.createReceiver(topic, subscription);
  const seen = [];
  while (seen.at(-1) !== "end") {
    const [message] = await take(receiver, 1);
    seen.push(message.body);
    await receiver.completeMessage(message);
  }
  return seen.slice(0, -1);
}

check("every subscription gets its own copy", async ({ client, topic, subscription }) => {
  const name = await topic();
  const both = [await subscription(name), await subscription(name)];
  await send(client, name, "x", end);
  for (const one of both) assert.deepEqual(await until(client, name, one), ["x"]);
});

check("a topic without subscriptions takes messages", async ({ client, topic }) => {
  await send(client, await topic(), "nobody");
});

check("true and false filters", async ({ client, topic, subscription }) => {
  const name = await topic();
  const all = await subscription(name, {}, { filter: { sqlExpression: "1=1" } });
  const none = await subscription(name, {}, { filter: { sqlExpression: "1=2" } }, END);
  await send(client, name, "x", end);
  assert.deepEqual(await until(client, name, all), ["x"]);
  assert.deepEqual(await until(client, name, none), []);
});

for (const filter of [
  { correlationId: "yes" },
  { subject: "yes" },
  { messageId: "yes" },
  { to: "yes" },
  { replyTo: "yes" },
  { sessionId: "yes" },
  { contentType: "yes" },
  { applicationProperties: { colour: "yes" } },
  { subject: "yes", applicationProperties: { colour: "yes", size: 3 } },
]) {
  check(`a correlation filter: ${JSON.stringify(filter)}`, async ({ client, topic, subscription }) => {
    const name = await topic();
    const only = await subscription(name, {}, { filter }, END);
    const messages = ["yes", "no"].map((value) => ({
      body: value, correlationId: value, subject: value, messageId: value, to: value, replyTo: value, sessionId: value, contentType: value,
      applicationProperties: { colour: value, size: 3 },
    }));
    for (const message of messages) await send(client, name, message);
    await send(client, name, end);
    assert.deepEqual(await until(client, name, only), ["yes"]);
  });
}

for (const [sqlExpression, passing] of [
  ["colour = 'red'", ["red"]],
  ["colour <> 'red' AND size >= 2", ["blue", "green"]],
  ["colour IN ('red', 'blue')", ["red", "blue"]],
  ["colour LIKE 'r_d' OR sys.Label LIKE 'th%'", ["red", "green"]],
  ["heavy IS NULL", ["red", "blue"]],
  ["NOT EXISTS(heavy)", ["red", "blue"]],
  ["heavy = TRUE", ["green"]],
  ["size + 1 > 3.2", ["blue", "green"]],
]) {
  check(`a SQL filter: ${sqlExpression}`, async ({ client, topic, subscription }) => {
    const name = await topic();
    const only = await subscription(name, {}, { filter: { sqlExpression } }, END);
    await send(
      client,
      name,
      { body: "red", subject: "one", applicationProperties: { colour: "red", size: 1 } },
      { body: "blue", subject: "two", applicationProperties: { colour: "blue", size: 3 } },
      { body: "green", subject: "three", applicationProperties: { colour: "green", size: 2.5, heavy: true } },
      end,
    );
    assert.deepEqual(await until(client, name, only), passing);
  });
}

check("a SQL filter with parameters", async ({ client, topic, subscription }) => {
  const name = await topic();
  const filter = { sqlExpression: "colour = @colour AND size > @size", sqlParameters: { "@colour": "red", "@size": 2 } };
  const only = await subscription(name, {}, { filter }, END);
  const red = (size) => ({ body: `red ${size}`, applicationProperties: { colour: "red", size } });
  await send(client, name, red(1), red(3), { body: "blue", applicationProperties: { colour: "blue", size: 3 } }, end);
  assert.deepEqual(await until(client, name, only), ["red 3"]);
});

check("an action changes the copy", async ({ client, topic, subscription }) => {
  const name = await topic();
  const action = { sqlExpression: "SET colour = 'blue'; SET sys.Label = 'changed'; REMOVE size" };
  const changed = await subscription(name, {}, { filter: { sqlExpression: "colour = 'red'" }, action });
  const other = await subscription(name);
  await send(client, name, { body: "x", subject: "as sent", applicationProperties: { colour: "red", size: 1 } });
  const [copy] = await take(client.createReceiver(name, changed), 1);
  assert.deepEqual([copy.subject, copy.applicationProperties], ["changed", { colour: "blue" }]);
  const [original] = await take(client.createReceiver(name, other), 1);
  assert.deepEqual([original.subject, original.applicationProperties], ["as sent", { colour: "red", size: 1 }]);
});

check("rules are made, listed and removed by the data plane", async ({ client, topic, subscription }) => {
  const name = await topic();
  const only = await subscription(name);
  const rules = client.createRuleManager(name, only);
  const listed = async () => {
    const found = {};
    for await (const rule of rules.listRules()) found[rule.name] = rule;
    return found;
  };
  assert.deepEqual(Object.keys(await listed()), ["$Default"]);
  await rules.deleteRule("$Default");
  await rules.createRule("sql", { sqlExpression: "colour = 'red'" }, { sqlExpression: "SET seen = 1" });
  await rules.createRule("correlation", { subject: "yes", applicationProperties: { size: 3 } });
  const found = await listed();
  assert.deepEqual(Object.keys(found).sort(), ["correlation", "sql"]);
  assert.equal(found.sql.filter.sqlExpression, "colour = 'red'");
  assert.equal(found.sql.action.sqlExpression, "SET seen = 1");
  assert.equal(found.correlation.filter.subject, "yes");
  assert.deepEqual(found.correlation.filter.applicationProperties, { size: 3 });
  await assert.rejects(rules.createRule("sql", { sqlExpression: "1=1" }));
  await assert.rejects(rules.deleteRule("nothing"));
  await send(client, name, { body: "neither" }, { body: "red", applicationProperties: { colour: "red" } });
  assert.deepEqual(bodies(await take(client.createReceiver(name, only), 1)), ["red"]);
});

check("dead letters belong to the subscription", async ({ client, topic, subscription }) => {
  const name = await topic();
  const [first, second] = [await subscription(name), await subscription(name)];
  await send(client, name, "x", end);
  const receiver = client.createReceiver(name, first);
  await receiver.deadLetterMessage((await take(receiver, 1))[0], { deadLetterReason: "r" });
  const [letter] = await take(client.createReceiver(name, first, { subQueueType: "deadLetter" }), 1);
  assert.equal(letter.deadLetterReason, "r");
  assert.deepEqual(await until(client, name, second), ["x"]);
});

check("a subscription with sessions", async ({ client, topic, subscription }) => {
  const name = await topic();
  const only = await subscription(name, { requiresSession: true });
  await send(client, name, { body: "x", sessionId: "a" }, { body: "y", sessionId: "b" });
  const receiver = await client.acceptSession(name, only, "b");
  assert.deepEqual(bodies(await take(receiver, 1)), ["y"]);
});
