"""The administration client."""

from datetime import datetime, timedelta, timezone

import pytest
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError
from azure.servicebus import ServiceBusMessage
from azure.servicebus.management import (
    AccessRights,
    AuthorizationRule,
    CorrelationRuleFilter,
    EntityStatus,
    FalseRuleFilter,
    SqlRuleAction,
    SqlRuleFilter,
    TrueRuleFilter,
)

from conftest import take, unique


@pytest.fixture
def name(admin):
    """A queue's name; the queue goes with the check, if it made one."""
    name = unique("queue")
    yield name
    try:
        admin.delete_queue(name)
    except ResourceNotFoundError:
        pass


def test_a_queue_with_defaults(admin, name):
    made = admin.create_queue(name)
    assert made.name == name
    read = admin.get_queue(name)
    assert read.name == name
    assert read.lock_duration == timedelta(minutes=1)
    assert read.max_delivery_count == 10
    assert read.max_size_in_megabytes in (1024, 5120)
    assert read.requires_session is False
    assert read.requires_duplicate_detection is False
    assert read.dead_lettering_on_message_expiration is False
    assert read.enable_batched_operations is True
    assert read.status == EntityStatus.ACTIVE
    assert read.default_message_time_to_live > timedelta(days=10_000)
    assert read.forward_to is None


def test_a_queue_keeps_every_setting(admin, name):
    settings = {
        "lock_duration": timedelta(seconds=45),
        "max_delivery_count": 3,
        "max_size_in_megabytes": 2048,
        "requires_session": True,
        "requires_duplicate_detection": True,
        "duplicate_detection_history_time_window": timedelta(minutes=5),
        "default_message_time_to_live": timedelta(days=2, hours=3),
        "dead_lettering_on_message_expiration": True,
        "auto_delete_on_idle": timedelta(hours=1),
        "enable_batched_operations": False,
        "user_metadata": "for <us> & you ☃",
    }
    made, read = admin.create_queue(name, **settings), admin.get_queue(name)
    for key, value in settings.items():
        assert (key, made[key]) == (key, value)
        assert (key, read[key]) == (key, value)


def test_authorization_rules_are_kept(admin, name):
    rule = AuthorizationRule(
        type="SharedAccessAuthorizationRule", claim_type="SharedAccessKey", claim_value="None", rights=[AccessRights.SEND], key_name="sender",
        primary_key="MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=", secondary_key="MTEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
        created_at_utc=datetime.now(timezone.utc), modified_at_utc=datetime.now(timezone.utc),
    )
    admin.create_queue(name, authorization_rules=[rule])
    [read] = admin.get_queue(name).authorization_rules
    assert (read.key_name, read.rights) == ("sender", [AccessRights.SEND])


def test_a_queue_is_updated(admin, name):
    properties = admin.create_queue(name, max_delivery_count=3)
    properties.max_delivery_count = 7
    properties.lock_duration = timedelta(seconds=20)
    properties.default_message_time_to_live = timedelta(days=1)
    admin.update_queue(properties)
    read = admin.get_queue(name)
    assert (read.max_delivery_count, read.lock_duration) == (7, timedelta(seconds=20))
    assert read.default_message_time_to_live == timedelta(days=1)
    admin.update_queue(name_only := admin.get_queue(name), max_delivery_count=8)
    assert admin.get_queue(name_only.name).max_delivery_count == 8


def test_what_a_queue_is_cannot_be_changed(admin, name):
    properties = admin.create_queue(name)
    properties.requires_session = True
    with pytest.raises(HttpResponseError, match="The value for the RequiresSession property of an existing Queue cannot be changed"):
        admin.update_queue(properties)
    assert admin.get_queue(name).requires_session is False


def test_a_partitioned_queue_shows_the_size_of_all_its_partitions(admin, name):
    made = admin.create_queue(name, enable_partitioning=True, max_size_in_megabytes=2048)
    assert made.max_size_in_megabytes == 16 * 2048
    admin.update_queue(admin.get_queue(name))
    assert admin.get_queue(name).max_size_in_megabytes == 16 * 2048


def test_a_standard_namespace_takes_no_largest_message(admin, name):
    with pytest.raises(HttpResponseError) as refused:
        admin.create_queue(name, max_message_size_in_kilobytes=2048)
    assert refused.value.status_code == 400


def test_a_second_queue_of_that_name_is_refused(admin, name):
    admin.create_queue(name)
    with pytest.raises(ResourceExistsError):
        admin.create_queue(name)
    with pytest.raises(ResourceExistsError):
        admin.create_topic(name)


def test_what_is_not_there_is_not_found(admin, topic):
    nowhere = unique("nowhere")
    for ask in (
        lambda: admin.get_queue(nowhere),
        lambda: admin.get_queue_runtime_properties(nowhere),
        lambda: admin.delete_queue(nowhere),
        lambda: admin.get_topic(nowhere),
        lambda: admin.get_topic_runtime_properties(nowhere),
        lambda: admin.delete_topic(nowhere),
        lambda: admin.get_subscription(topic.name, nowhere),
        lambda: admin.get_subscription_runtime_properties(topic.name, nowhere),
        lambda: admin.delete_subscription(topic.name, nowhere),
        lambda: admin.create_subscription(nowhere, "sub"),
        lambda: admin.get_rule(topic.name, topic.subscription(), nowhere),
        lambda: admin.delete_rule(topic.name, topic.subscription(), nowhere),
        lambda: admin.create_rule(topic.name, nowhere, "rule"),
    ):
        with pytest.raises(ResourceNotFoundError):
            ask()


def test_a_deleted_queue_is_gone(admin, name):
    admin.create_queue(name)
    admin.delete_queue(name)
    with pytest.raises(ResourceNotFoundError):
        admin.get_queue(name)


@pytest.mark.parametrize(
    "settings",
    [
        {"lock_duration": timedelta(minutes=6)},
        {"lock_duration": timedelta(seconds=1)},
        {"max_delivery_count": 0},
        {"duplicate_detection_history_time_window": timedelta(days=8), "requires_duplicate_detection": True},
        {"auto_delete_on_idle": timedelta(minutes=4)},
    ],
    ids=str,
)
def test_a_setting_outside_its_range_is_refused(admin, name, settings):
    with pytest.raises(HttpResponseError) as refused:
        admin.create_queue(name, **settings)
    assert refused.value.status_code == 400


def test_counts_of_a_queue(admin, client, name):
    admin.create_queue(name)
    with client.get_queue_sender(name) as sender, client.get_queue_receiver(name) as receiver:
        sender.send_messages([ServiceBusMessage("x" * 100) for _ in range(5)])
        sender.schedule_messages([ServiceBusMessage("y"), ServiceBusMessage("z")], datetime.now(timezone.utc) + timedelta(hours=1))
        first, second, _locked = take(receiver, 3)
        receiver.dead_letter_message(first, reason="r")
        receiver.complete_message(second)
        counts = admin.get_queue_runtime_properties(name)
        assert counts.name == name
        assert counts.active_message_count == 3
        assert counts.scheduled_message_count == 2
        assert counts.dead_letter_message_count == 1
        assert counts.total_message_count == 6
        assert counts.transfer_message_count == 0
        assert counts.transfer_dead_letter_message_count == 0
        assert counts.size_in_bytes > 300
        now = datetime.now(timezone.utc)
        for moment in (counts.created_at_utc, counts.updated_at_utc, counts.accessed_at_utc):
            assert abs(now - moment) < timedelta(minutes=1)


def test_queues_are_listed_page_by_page(admin):
    # More than one page of a hundred.
    names = [unique("page") for _ in range(105)]
    try:
        for name in names:
            admin.create_queue(name)
        listed = [queue.name for queue in admin.list_queues()]
        assert set(names) <= set(listed)
        assert len(listed) == len(set(listed))
        counted = {queue.name: queue.total_message_count for queue in admin.list_queues_runtime_properties()}
        assert all(counted[name] == 0 for name in names)
    finally:
        for name in names:
            admin.delete_queue(name)


def test_a_topic_keeps_every_setting(admin):
    name = unique("topic")
    settings = {
        "default_message_time_to_live": timedelta(days=3),
        "max_size_in_megabytes": 2048,
        "requires_duplicate_detection": True,
        "duplicate_detection_history_time_window": timedelta(minutes=1),
        "auto_delete_on_idle": timedelta(hours=2),
        "support_ordering": True,
        "user_metadata": "x",
    }
    made = admin.create_topic(name, **settings)
    try:
        read = admin.get_topic(name)
        for key, value in settings.items():
            assert (key, made[key]) == (key, value)
            assert (key, read[key]) == (key, value)
        read.default_message_time_to_live = timedelta(days=4)
        admin.update_topic(read)
        assert admin.get_topic(name).default_message_time_to_live == timedelta(days=4)
        assert name in [topic.name for topic in admin.list_topics()]
        with pytest.raises(ResourceExistsError):
            admin.create_topic(name)
    finally:
        admin.delete_topic(name)
    with pytest.raises(ResourceNotFoundError):
        admin.get_topic(name)


def test_a_subscription_keeps_every_setting(admin, topic):
    name = unique("sub")
    settings = {
        "lock_duration": timedelta(seconds=30),
        "requires_session": True,
        "default_message_time_to_live": timedelta(hours=5),
        "dead_lettering_on_message_expiration": True,
        "dead_lettering_on_filter_evaluation_exceptions": False,
        "max_delivery_count": 4,
        "auto_delete_on_idle": timedelta(hours=3),
        "user_metadata": "y",
    }
    made = admin.create_subscription(topic.name, name, **settings)
    read = admin.get_subscription(topic.name, name)
    for key, value in settings.items():
        assert (key, made[key]) == (key, value)
        assert (key, read[key]) == (key, value)
    read.max_delivery_count = 9
    admin.update_subscription(topic.name, read)
    assert admin.get_subscription(topic.name, name).max_delivery_count == 9
    assert [subscription.name for subscription in admin.list_subscriptions(topic.name)] == [name]
    with pytest.raises(ResourceExistsError):
        admin.create_subscription(topic.name, name)
    assert admin.get_subscription_runtime_properties(topic.name, name).accessed_at_utc.year > 2000
    admin.delete_subscription(topic.name, name)
    assert list(admin.list_subscriptions(topic.name)) == []


def test_counts_of_a_topic_and_its_subscriptions(admin, client, topic):
    first, second = topic.subscription(), topic.subscription(FalseRuleFilter())
    with client.get_topic_sender(topic.name) as sender:
        sender.send_messages([ServiceBusMessage("x"), ServiceBusMessage("y")])
        sender.schedule_messages(ServiceBusMessage("z"), datetime.now(timezone.utc) + timedelta(hours=1))
    with client.get_subscription_receiver(topic.name, first) as receiver:
        receiver.dead_letter_message(take(receiver, 1)[0])
    counts = admin.get_topic_runtime_properties(topic.name)
    assert (counts.subscription_count, counts.scheduled_message_count) == (2, 1)
    counts = admin.get_subscription_runtime_properties(topic.name, first)
    assert (counts.active_message_count, counts.dead_letter_message_count, counts.total_message_count) == (1, 1, 2)
    listed = {s.name: s.total_message_count for s in admin.list_subscriptions_runtime_properties(topic.name)}
    assert listed == {first: 2, second: 0}


@pytest.mark.parametrize(
    "filter",
    [
        TrueRuleFilter(),
        FalseRuleFilter(),
        SqlRuleFilter("colour = 'red' AND size < 3"),
        SqlRuleFilter("colour = @colour", parameters={"@colour": "red", "@size": 3}),
        CorrelationRuleFilter(correlation_id="c", label="l", message_id="m", to="t", reply_to="r", session_id="s", reply_to_session_id="rs", content_type="ct"),
        CorrelationRuleFilter(label="l", properties={"text": "a<b", "int": 3, "float": 0.5, "yes": True}),
    ],
    ids=["true", "false", "sql", "sql with parameters", "correlation", "correlation with properties"],
)
def test_a_rule_is_read_as_it_was_made(admin, topic, filter):
    subscription = topic.subscription()
    admin.create_rule(topic.name, subscription, "rule", filter=filter, action=SqlRuleAction("SET a = 1"))
    rule = admin.get_rule(topic.name, subscription, "rule")
    assert rule.name == "rule"
    assert type(rule.filter) is type(filter)
    # The service has an expression of its own for what is always true or false.
    constant = isinstance(filter, (TrueRuleFilter, FalseRuleFilter))
    for field in vars(filter):
        if field not in ("requires_preprocessing", "properties", "parameters") and not constant:
            assert (field, getattr(rule.filter, field)) == (field, getattr(filter, field))
    for field in ("properties", "parameters"):
        assert dict(getattr(rule.filter, field, None) or {}) == dict(getattr(filter, field, None) or {})
    assert rule.action.sql_expression == "SET a = 1"
    assert [r.name for r in admin.list_rules(topic.name, subscription)] == ["$Default", "rule"]


def test_rules_are_changed_and_deleted(admin, topic):
    subscription = topic.subscription(SqlRuleFilter("a = 1"))
    rule = admin.get_rule(topic.name, subscription, "rule0")
    rule.filter = CorrelationRuleFilter(label="x")
    admin.update_rule(topic.name, subscription, rule)
    assert admin.get_rule(topic.name, subscription, "rule0").filter.label == "x"
    with pytest.raises(ResourceExistsError):
        admin.create_rule(topic.name, subscription, "rule0")
    admin.delete_rule(topic.name, subscription, "rule0")
    assert list(admin.list_rules(topic.name, subscription)) == []


def test_a_wrong_expression_is_refused(admin, topic):
    with pytest.raises(HttpResponseError) as refused:
        topic.subscription(SqlRuleFilter("colour = = 'red'"))
    assert refused.value.status_code == 400


def test_a_queue_forwards_to_another(admin, client, make_queue):
    target = make_queue()
    source = make_queue(forward_to=target)
    assert admin.get_queue(source).forward_to.rstrip("/").endswith(target)
    with client.get_queue_sender(source) as sender, client.get_queue_receiver(target) as receiver:
        sender.send_messages(ServiceBusMessage("x"))
        receiver.complete_message(take(receiver, 1)[0])


def test_dead_letters_are_forwarded(admin, client, make_queue):
    target = make_queue()
    source = make_queue(forward_dead_lettered_messages_to=target)
    with client.get_queue_sender(source) as sender, client.get_queue_receiver(source) as receiver:
        sender.send_messages(ServiceBusMessage("x"))
        receiver.dead_letter_message(take(receiver, 1)[0], reason="r")
    with client.get_queue_receiver(target) as receiver:
        [letter] = take(receiver, 1)
        assert letter.dead_letter_reason == "r"
        assert letter.dead_letter_source == source


def test_the_namespace_tells_about_itself(admin):
    namespace = admin.get_namespace_properties()
    assert namespace.name
    assert namespace.messaging_sku in ("Standard", "Premium")
