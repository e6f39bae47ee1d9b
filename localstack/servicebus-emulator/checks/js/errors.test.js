// What is refused, and as what.
import assert from "node:assert/strict";
import { bodies, check, code, send, take, unique } from "./support.js";

check("sending to what is not there", async ({ client }) => {
  await assert.rejects(send(client, unique("nowhere"), "x"), code("MessagingEntityNotFound"));
});

check("receiving from what is not there", async ({ client }) => {
  const receiver = client.createReceiver(unique("nowhere"));
  await assert.rejects(receiver.receiveMessages(1, { maxWaitTimeInMs: 1000 }), code("MessagingEntityNotFound"));
});

check("a subscription that is not there", async ({ client, topic }) => {
  const receiver = client.createReceiver(await topic(), unique("nobody"));
  await assert.rejects(receiver.receiveMessages(1, { maxWaitTimeInMs: 1000 }), code("MessagingEntityNotFound"));
});

check("a failed link leaves its connection alone", async ({ client, queue }) => {
  const name = await queue();
  const sender = client.createSender(name);
  await sender.sendMessages({ body: "before" });
  // All of one client goes over one connection.
  await assert.rejects(send(client, unique("nowhere"), "x"), code("MessagingEntityNotFound"));
  await sender.sendMessages({ body: "after" });
  assert.deepEqual(bodies(await take(client.createReceiver(name), 2)), ["before", "after"]);
});

check("a disabled queue refuses", async ({ client, queue, admin }) => {
  const name = await queue();
  const properties = await admin.getQueue(name);
  await admin.updateQueue({ ...properties, status: "SendDisabled" });
  await assert.rejects(send(client, name, "x"), code("MessagingEntityDisabled"));
});

check("names ignore case", async ({ client, queue }) => {
  const name = await queue();
  await send(client, name.toUpperCase(), "x");
  assert.deepEqual(bodies(await take(client.createReceiver(name), 1)), ["x"]);
});
