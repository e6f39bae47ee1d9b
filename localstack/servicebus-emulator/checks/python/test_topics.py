"""Topics, and each kind of filter."""

import pytest
from azure.servicebus import ServiceBusMessage, ServiceBusSubQueue
from azure.servicebus.management import CorrelationRuleFilter, FalseRuleFilter, SqlRuleAction, SqlRuleFilter, TrueRuleFilter

from conftest import take, text


@pytest.fixture
def publish(client, topic):
    def publish(*messages):
        with client.get_topic_sender(topic.name) as sender:
            sender.send_messages(list(messages))

    return publish


@pytest.fixture
def bodies(client, topic, publish):
    """What a subscription got, up to a message that all filters here let pass."""

    def bodies(subscription):
        with client.get_subscription_receiver(topic.name, subscription) as receiver:
            seen = []
            while not seen or seen[-1] != "end":
                [message] = take(receiver, 1)
                seen.append(text(message))
                receiver.complete_message(message)
            return seen[:-1]

    return bodies


FIELDS = ("correlation_id", "message_id", "to", "reply_to", "session_id", "content_type", "subject")


def message(body, **values):
    fields = {name: values.pop(name) for name in FIELDS if name in values}
    return ServiceBusMessage(body, application_properties=values, **fields)


END = SqlRuleFilter("finish = 1")


def end():
    return message("end", finish=1)


def test_every_subscription_gets_its_own_copy(client, topic, publish):
    first, second = topic.subscription(), topic.subscription()
    publish(message("x"))
    for subscription in (first, second):
        with client.get_subscription_receiver(topic.name, subscription) as receiver:
            [got] = take(receiver, 1)
            assert text(got) == "x"
            receiver.complete_message(got)


def test_a_topic_without_subscriptions_takes_messages(publish):
    publish(message("nobody"))


def test_true_and_false_filters(topic, publish, bodies):
    all, none = topic.subscription(TrueRuleFilter()), topic.subscription(FalseRuleFilter(), END)
    publish(message("x"), end())
    assert bodies(all) == ["x"]
    assert bodies(none) == []


@pytest.mark.parametrize(
    "filter",
    [
        CorrelationRuleFilter(correlation_id="yes"),
        CorrelationRuleFilter(label="yes"),
        CorrelationRuleFilter(message_id="yes"),
        CorrelationRuleFilter(to="yes"),
        CorrelationRuleFilter(reply_to="yes"),
        CorrelationRuleFilter(session_id="yes"),
        CorrelationRuleFilter(content_type="yes"),
        CorrelationRuleFilter(properties={"colour": "yes"}),
        CorrelationRuleFilter(label="yes", properties={"colour": "yes", "size": 3}),
    ],
    ids=lambda filter: "+".join(name for name in (*FIELDS[:-1], "label", "properties") if getattr(filter, name)),
)
def test_correlation_filters(topic, publish, bodies, filter):
    subscription = topic.subscription(filter, END)
    for value in ("yes", "no", "YES"):
        publish(
            message(
                value, subject=value, correlation_id=value, message_id=value, to=value, reply_to=value, session_id=value,
                content_type=value, colour=value, size=3,
            )
        )
    publish(end())
    assert bodies(subscription) == ["yes"]


@pytest.mark.parametrize(
    "expression, passing",
    [
        ("colour = 'red'", ["red"]),
        ("colour <> 'red'", ["blue", "green"]),
        ("colour IN ('red', 'blue')", ["red", "blue"]),
        ("colour NOT IN ('red', 'blue')", ["green"]),
        ("colour LIKE '%e%'", ["red", "blue", "green"]),
        ("colour LIKE 'r_d'", ["red"]),
        ("colour NOT LIKE 'r%'", ["blue", "green"]),
        ("size > 2", ["blue", "green"]),
        ("size >= 2 AND size < 3", ["green"]),
        ("size * 2 + 1 = 7", ["blue"]),
        ("heavy = TRUE", ["green"]),
        ("heavy IS NULL", ["red", "blue"]),
        ("heavy IS NOT NULL", ["green"]),
        ("EXISTS(heavy)", ["green"]),
        ("NOT (colour = 'red' OR size = 3)", ["green"]),
        ("sys.Label = 'two'", ["blue"]),
        ("sys.label LIKE 'th%'", ["green"]),
        ("user.colour = 'green'", ["green"]),
        ("sys.MessageId = 'm1' OR [colour] = 'blue'", ["red", "blue"]),
        ("size = -1", []),
        ("colour = 'it''s'", []),
        ("1 = 1", ["red", "blue", "green"]),
    ],
)
def test_sql_filters(topic, publish, bodies, expression, passing):
    subscription = topic.subscription(SqlRuleFilter(expression), END)
    publish(
        message("red", subject="one", message_id="m1", colour="red", size=1),
        message("blue", subject="two", colour="blue", size=3),
        message("green", subject="three", colour="green", size=2.5, heavy=True),
    )
    publish(end())
    assert bodies(subscription) == passing


def test_a_sql_filter_with_parameters(topic, publish, bodies):
    subscription = topic.subscription(SqlRuleFilter("colour = @colour", parameters={"@colour": "red"}), END)
    publish(message("a", colour="red"), message("b", colour="blue"), end())
    assert bodies(subscription) == ["a"]


def test_an_action_changes_the_copy(client, topic, publish):
    action = SqlRuleAction("SET colour = 'blue'; SET sys.Label = 'changed'; REMOVE size")
    subscription = topic.subscription((SqlRuleFilter("colour = 'red'"), action))
    other = topic.subscription()
    publish(message("x", subject="as sent", colour="red", size=1))
    with client.get_subscription_receiver(topic.name, subscription) as receiver:
        [got] = take(receiver, 1)
        assert got.application_properties == {b"colour": b"blue"}
        assert got.subject == "changed"
    with client.get_subscription_receiver(topic.name, other) as receiver:
        [got] = take(receiver, 1)
        assert got.application_properties == {b"colour": b"red", b"size": 1}
        assert got.subject == "as sent"


def test_dead_letters_belong_to_the_subscription(client, topic, publish):
    first, second = topic.subscription(), topic.subscription()
    publish(message("x"))
    with client.get_subscription_receiver(topic.name, first) as receiver:
        receiver.dead_letter_message(take(receiver, 1)[0], reason="r")
    with client.get_subscription_receiver(topic.name, first, sub_queue=ServiceBusSubQueue.DEAD_LETTER) as letters:
        assert take(letters, 1)[0].dead_letter_reason == "r"
    with client.get_subscription_receiver(topic.name, second) as receiver:
        assert text(take(receiver, 1)[0]) == "x"


def test_a_subscription_with_sessions(client, topic, publish):
    subscription = topic.subscription(requires_session=True)
    publish(message("x", session_id="a"), message("y", session_id="b"))
    with client.get_subscription_receiver(topic.name, subscription, session_id="b") as receiver:
        assert text(take(receiver, 1)[0]) == "y"


def test_a_late_subscription_gets_what_comes_later(topic, publish, bodies):
    publish(message("early"))
    subscription = topic.subscription()
    publish(message("late"), end())
    assert bodies(subscription) == ["late"]
