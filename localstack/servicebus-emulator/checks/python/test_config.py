"""The entities of Config.json, which our emulator and the official one start with."""

from datetime import timedelta

from azure.servicebus import ServiceBusMessage
from azure.servicebus.management import CorrelationRuleFilter, SqlRuleFilter

from conftest import take, text, unique


def test_the_queue_is_there(admin, client):
    queue = admin.get_queue("payments")
    assert (queue.lock_duration, queue.max_delivery_count) == (timedelta(minutes=1), 10)
    assert queue.default_message_time_to_live == timedelta(hours=1)
    with client.get_queue_sender("payments") as sender, client.get_queue_receiver("payments") as receiver:
        sender.send_messages(ServiceBusMessage("x"))
        [message] = take(receiver, 1)
        assert text(message) == "x"
        receiver.complete_message(message)


def test_the_subscriptions_have_their_rules(admin, client):
    [orders] = admin.list_rules("order-events", "billing")
    assert isinstance(orders.filter, SqlRuleFilter)
    assert orders.filter.sql_expression == "sys.Label LIKE 'order.%'"
    [json] = admin.list_rules("order-events", "audit")
    assert isinstance(json.filter, CorrelationRuleFilter)
    assert json.filter.content_type == "application/json"
    order, note = unique("order"), unique("note")
    with client.get_topic_sender("order-events") as sender:
        sender.send_messages([ServiceBusMessage(note, content_type="application/json"), ServiceBusMessage(order, subject="order.placed")])
    for subscription, wanted in (("billing", order), ("audit", note)):
        with client.get_subscription_receiver("order-events", subscription) as receiver:
            [message] = take(receiver, 1)
            assert text(message) == wanted
            receiver.complete_message(message)
