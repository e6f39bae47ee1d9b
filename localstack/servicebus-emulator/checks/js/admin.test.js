// The administration client.
import assert from "node:assert/strict";
import { check, code, send, take, unique } from "./support.js";

const notFound = code("MessageEntityNotFoundError");
const exists = code("MessageEntityAlreadyExistsError");

async function all(pages) {
  const found = [];
  for await (const one of pages) found.push(one);
  return found;
}

// The settings arrive, whatever else there is.
function includes(found, settings) {
  for (const [name, value] of Object.entries(settings)) assert.deepEqual(found[name], value, name);
}

check("a queue with defaults", async ({ admin, queue }) => {
  const name = await queue();
  const read = await admin.getQueue(name);
  includes(read, {
    name,
    lockDuration: "PT1M",
    maxDeliveryCount: 10,
    requiresSession: false,
    requiresDuplicateDetection: false,
    deadLetteringOnMessageExpiration: false,
    enableBatchedOperations: true,
    status: "Active",
    availabilityStatus: "Available",
    forwardTo: undefined,
  });
  assert.equal(read.defaultMessageTimeToLive, "P10675199DT2H48M5.4775807S");
});

check("a queue keeps every setting", async ({ admin, after }) => {
  const name = unique("queue");
  after(() => admin.deleteQueue(name));
  const settings = {
    lockDuration: "PT45S",
    maxDeliveryCount: 3,
    maxSizeInMegabytes: 2048,
    requiresSession: true,
    requiresDuplicateDetection: true,
    duplicateDetectionHistoryTimeWindow: "PT5M",
    defaultMessageTimeToLive: "P2DT3H",
    deadLetteringOnMessageExpiration: true,
    autoDeleteOnIdle: "PT1H",
    enableBatchedOperations: false,
    userMetadata: "for <us> & you ☃",
  };
  includes(await admin.createQueue(name, settings), settings);
  includes(await admin.getQueue(name), settings);
});

check("a queue is updated", async ({ admin, queue }) => {
  const name = await queue();
  const updated = await admin.updateQueue({ ...(await admin.getQueue(name)), maxDeliveryCount: 7, lockDuration: "PT20S" });
  includes(updated, { maxDeliveryCount: 7, lockDuration: "PT20S" });
  includes(await admin.getQueue(name), { maxDeliveryCount: 7, lockDuration: "PT20S" });
});

check("a second entity of that name is refused", async ({ admin, queue }) => {
  const name = await queue();
  await assert.rejects(admin.createQueue(name), exists);
  await assert.rejects(admin.createTopic(name), exists);
});

check("what is not there is not found", async ({ admin, topic, subscription }) => {
  const nowhere = unique("nowhere");
  const name = await topic();
  const sub = await subscription(name);
  for (const ask of [
    () => admin.getQueue(nowhere),
    () => admin.getQueueRuntimeProperties(nowhere),
    () => admin.deleteQueue(nowhere),
    () => admin.getTopic(nowhere),
    () => admin.deleteTopic(nowhere),
    () => admin.getSubscription(name, nowhere),
    () => admin.deleteSubscription(name, nowhere),
    () => admin.createSubscription(nowhere, "sub"),
    () => admin.getRule(name, sub, nowhere),
    () => admin.deleteRule(name, sub, nowhere),
  ]) {
    await assert.rejects(ask(), notFound, String(ask));
  }
});

check("existence is told", async ({ admin, queue, topic, subscription }) => {
  const [one, other] = [await queue(), await topic()];
  const sub = await subscription(other);
  assert.deepEqual(
    [
      await admin.queueExists(one), await admin.queueExists(unique("nowhere")),
      await admin.topicExists(other), await admin.topicExists(unique("nowhere")),
      await admin.subscriptionExists(other, sub), await admin.subscriptionExists(other, "nobody"),
      await admin.ruleExists(other, sub, "$Default"), await admin.ruleExists(other, sub, "nothing"),
    ],
    [true, false, true, false, true, false, true, false],
  );
});

check("counts of a queue", async ({ admin, client, queue }) => {
  const name = await queue();
  await send(client, name, ..."abcde");
  const sender = client.createSender(name);
  await sender.scheduleMessages([{ body: "y" }, { body: "z" }], new Date(Date.now() + 3_600_000));
  const receiver = client.createReceiver(name);
  const [first, second] = await take(receiver, 3);
  await receiver.deadLetterMessage(first);
  await receiver.completeMessage(second);
  const counts = await admin.getQueueRuntimeProperties(name);
  includes(counts, {
    name, activeMessageCount: 3, scheduledMessageCount: 2, deadLetterMessageCount: 1, totalMessageCount: 6,
    transferMessageCount: 0, transferDeadLetterMessageCount: 0,
  });
  assert.ok(counts.sizeInBytes > 0);
  for (const moment of [counts.createdAt, counts.modifiedAt, counts.accessedAt]) assert.ok(Math.abs(Date.now() - moment.getTime()) < 60_000);
});

check("queues are listed page by page", async ({ admin, queue }) => {
  const names = [await queue(), await queue(), await queue()];
  const listed = (await all(admin.listQueues())).map((one) => one.name);
  for (const name of names) assert.equal(listed.filter((one) => one === name).length, 1);
  const pages = [];
  for await (const page of admin.listQueues().byPage({ maxPageSize: 2 })) {
    assert.ok(page.length <= 2);
    pages.push(...page.map((one) => one.name));
  }
  for (const name of names) assert.equal(pages.filter((one) => one === name).length, 1);
  const counted = await all(admin.listQueuesRuntimeProperties());
  assert.equal(counted.find((one) => one.name === names[0]).totalMessageCount, 0);
});

check("a topic keeps every setting", async ({ admin, after }) => {
  const name = unique("topic");
  after(() => admin.deleteTopic(name));
  const settings = {
    defaultMessageTimeToLive: "P3D",
    maxSizeInMegabytes: 2048,
    requiresDuplicateDetection: true,
    duplicateDetectionHistoryTimeWindow: "PT1M",
    autoDeleteOnIdle: "PT2H",
    supportOrdering: true,
    userMetadata: "x",
  };
  includes(await admin.createTopic(name, settings), settings);
  includes(await admin.getTopic(name), settings);
  await admin.updateTopic({ ...(await admin.getTopic(name)), defaultMessageTimeToLive: "P4D" });
  assert.equal((await admin.getTopic(name)).defaultMessageTimeToLive, "P4D");
  assert.ok((await all(admin.listTopics())).some((one) => one.name === name));
});

check("a subscription keeps every setting", async ({ admin, topic }) => {
  const name = await topic();
  const settings = {
    lockDuration: "PT30S",
    requiresSession: true,
    defaultMessageTimeToLive: "PT5H",
    deadLetteringOnMessageExpiration: true,
    deadLetteringOnFilterEvaluationExceptions: false,
    maxDeliveryCount: 4,
    autoDeleteOnIdle: "PT3H",
    userMetadata: "y",
  };
  includes(await admin.createSubscription(name, "sub", settings), settings);
  includes(await admin.getSubscription(name, "sub"), settings);
  await admin.updateSubscription({ ...(await admin.getSubscription(name, "sub")), maxDeliveryCount: 9 });
  assert.equal((await admin.getSubscription(name, "sub")).maxDeliveryCount, 9);
  await assert.rejects(admin.createSubscription(name, "sub"), exists);
  assert.deepEqual((await all(admin.listSubscriptions(name))).map((one) => one.subscriptionName), ["sub"]);
  await admin.deleteSubscription(name, "sub");
  assert.deepEqual(await all(admin.listSubscriptions(name)), []);
});

check("a subscription is made with its rule", async ({ admin, topic }) => {
  const name = await topic();
  await admin.createSubscription(name, "sub", { defaultRuleOptions: { name: "only", filter: { subject: "yes" } } });
  const rules = await all(admin.listRules(name, "sub"));
  assert.deepEqual(rules.map((rule) => [rule.name, rule.filter.subject]), [["only", "yes"]]);
});

check("counts of a topic and its subscriptions", async ({ admin, client, topic, subscription }) => {
  const name = await topic();
  const [first, second] = [await subscription(name), await subscription(name, {}, { filter: { sqlExpression: "1=2" } })];
  await send(client, name, "x", "y");
  const receiver = client.createReceiver(name, first);
  await receiver.deadLetterMessage((await take(receiver, 1))[0]);
  includes(await admin.getTopicRuntimeProperties(name), { name, subscriptionCount: 2, scheduledMessageCount: 0 });
  includes(await admin.getSubscriptionRuntimeProperties(name, first), { activeMessageCount: 1, deadLetterMessageCount: 1, totalMessageCount: 2 });
  const listed = await all(admin.listSubscriptionsRuntimeProperties(name));
  assert.deepEqual(new Map(listed.map((one) => [one.subscriptionName, one.totalMessageCount])), new Map([[first, 2], [second, 0]]));
});

for (const filter of [
  { sqlExpression: "1=1" },
  { sqlExpression: "colour = 'red' AND size < 3" },
  { sqlExpression: "colour = @colour", sqlParameters: { "@colour": "red", "@size": 3 } },
  { correlationId: "c", subject: "l", messageId: "m", to: "t", replyTo: "r", sessionId: "s", replyToSessionId: "rs", contentType: "ct" },
  { subject: "l", applicationProperties: { text: "a<b", int: 3, yes: true } },
]) {
  check(`a rule is read as it was made: ${JSON.stringify(filter)}`, async ({ admin, topic, subscription }) => {
    const name = await topic();
    const sub = await subscription(name);
    await admin.createRule(name, sub, "rule", filter, { sqlExpression: "SET a = 1" });
    const rule = await admin.getRule(name, sub, "rule");
    assert.equal(rule.name, "rule");
    includes(rule.filter, filter);
    assert.equal(rule.action.sqlExpression, "SET a = 1");
    assert.deepEqual((await all(admin.listRules(name, sub))).map((one) => one.name), ["$Default", "rule"]);
  });
}

check("rules are changed and deleted", async ({ admin, topic, subscription }) => {
  const name = await topic();
  const sub = await subscription(name, {}, { filter: { sqlExpression: "a = 1" } });
  await admin.updateRule(name, sub, { ...(await admin.getRule(name, sub, "rule0")), filter: { subject: "x" } });
  assert.equal((await admin.getRule(name, sub, "rule0")).filter.subject, "x");
  await assert.rejects(admin.createRule(name, sub, "rule0", { subject: "y" }), exists);
  await admin.deleteRule(name, sub, "rule0");
  assert.deepEqual(await all(admin.listRules(name, sub)), []);
});

check("a queue forwards to another", async ({ admin, client, queue }) => {
  const target = await queue();
  const source = await queue({ forwardTo: target });
  assert.ok((await admin.getQueue(source)).forwardTo.endsWith(target));
  await send(client, source, "x");
  await take(client.createReceiver(target), 1);
});

check("the namespace tells about itself", async ({ admin }) => {
  const namespace = await admin.getNamespaceProperties();
  assert.ok(namespace.name);
  assert.ok(["Standard", "Premium"].includes(namespace.messagingSku));
});
