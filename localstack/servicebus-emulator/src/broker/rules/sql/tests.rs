use bytes::Bytes;

use super::*;
use crate::message::Message;

fn message() -> Message {
    let mut message = Message::default();
    message.properties.subject = Some("important".into());
    message.properties.message_id = Some(Value::Ulong(7));
    message.properties.correlation_id = Some(Value::Uuid([0; 16]));
    message.application_properties = vec![
        ("color".into(), Value::string("blue")),
        ("Size".into(), Value::Int(10)),
        ("price".into(), Value::Double(2.5)),
        ("paid".into(), Value::Bool(true)),
        ("cloudEvents:type".into(), Value::string("order.placed_50%")),
        ("odd \"name]".into(), Value::Ubyte(1)),
        ("raw".into(), Value::Binary(Bytes::from_static(b"x"))),
        ("nothing".into(), Value::Null),
    ];
    message
}

fn holds(text: &str) -> bool {
    parse_condition(text, &[]).unwrap_or_else(|why| panic!("{text}: {why}")).is_true(&message()).unwrap()
}

fn refused(text: &str) -> String {
    parse_condition(text, &[]).expect_err(text)
}

fn fails(text: &str) -> String {
    parse_condition(text, &[]).unwrap().is_true(&message()).expect_err(text)
}

#[test]
fn what_holds() {
    for text in [
        "color = 'blue'",
        "user.color='blue' and SYS.Label = 'important'",
        "size >= 10 AND Size <= 10 AND size <> 11 AND size != 11 AND size > 9.5",
        "price < 2.6 AND price > 2.4e0 AND price = .25 * 10",
        "size + 2 * 3 = 16 AND (size + 2) * 3 = 36 AND size - 1 - 1 = 8 AND 17 % 10 = 7 AND 20 / size = 2",
        "-size = -10 AND - -size = 10 AND +size = 10",
        "color IN ('red', 'blue') AND color NOT IN ('red')",
        "color LIKE 'b%' AND color LIKE '_l_e' AND color LIKE '%' AND color LIKE 'blue' AND NOT color LIKE 'b'",
        "color LIKE '%u%e' AND color NOT LIKE '%x%' AND color LIKE '%%e'",
        "[cloudEvents:type] LIKE 'order.%' AND \"cloudEvents:type\" LIKE '%\\_50\\%' ESCAPE '\\'",
        "[cloudEvents:type] LIKE 'order.placed!_%' ESCAPE '!'",
        "user.[odd \"name]]] = 1 AND \"odd \"\"name]\" = 1",
        "missing IS NULL AND color IS NOT NULL AND nothing IS NULL AND raw IS NOT NULL",
        "EXISTS(color) AND NOT EXISTS(missing) AND EXISTS(sys.Label) AND NOT EXISTS(sys.To)",
        "paid = TRUE AND paid AND NOT paid = false",
        "NOT (color = 'red' OR size = 1)",
        "color = 'red' OR size = 10 AND paid = true",
        "sys.MessageId = '7' AND sys.CorrelationId = '00000000-0000-0000-0000-000000000000'",
        "P('color') = 'blue' AND property('Size') = 10",
        "'it''s' = 'it' + '''s'",
        "NEWID() <> NEWID()",
    ] {
        assert!(holds(text), "{text}");
    }
}

#[test]
fn what_does_not_hold() {
    for text in [
        "color = 'Blue'",
        "color = 'red'",
        "size < 10",
        "color = 10",
        "color LIKE 'lue'",
        "size LIKE '1%'",
        "color LIKE ''",
        "paid = 1",
        "raw = raw",
    ] {
        assert!(!holds(text), "{text}");
    }
}

#[test]
fn unknown_is_neither_true_nor_false() {
    for unknown in [
        "missing = 1",
        "missing <> 1",
        "missing = missing",
        "missing LIKE '%'",
        "missing IN (1)",
        "1 IN (missing)",
        "NULL = NULL",
    ] {
        assert!(!holds(unknown), "{unknown}");
        assert!(!holds(&format!("NOT ({unknown})")), "not {unknown}");
        assert!(holds(&format!("({unknown}) OR TRUE")), "{unknown} or true");
        assert!(holds(&format!("TRUE OR ({unknown})")), "true or {unknown}");
        assert!(!holds(&format!("({unknown}) AND TRUE")), "{unknown} and true");
        assert!(holds(&format!("NOT (({unknown}) AND FALSE)")), "{unknown} and false is false");
        assert!(!holds(&format!("NOT (({unknown}) OR FALSE)")), "{unknown} or false is unknown");
    }
    assert!(!holds("missing + 1 = 2") && holds("(missing + 1) IS NULL"));
    assert!(holds("1 IN (missing, 1)"));
}

#[test]
fn what_is_refused() {
    for (text, why) in [
        ("", "the end"),
        ("color =", "the end"),
        ("color = 'blue", "no closing '"),
        ("[color = 1", "no closing ]"),
        ("color == 'blue'", "found '='"),
        ("color = 'a' 'b'", "expected the end"),
        ("(color = 'a'", "expected )"),
        ("color NOT = 'a'", "IN or LIKE"),
        ("color IS 1", "expected NULL"),
        ("color IN ()", "found ')'"),
        ("sys.Nothing = 1", "no system property 'Nothing'"),
        ("order.type = 1", "'order' is no scope"),
        ("color = @p", "@p has no value"),
        ("size = 99999999999999999999", "out of range"),
        ("color # 1", "'#'"),
    ] {
        let found = refused(text);
        assert!(found.contains(why), "{text}: {found}");
    }
    assert!(refused(&format!("a = '{}'", "x".repeat(1024))).contains("at most 1024"));
    assert!(refused(&"(".repeat(500)).contains("nested"));
}

#[test]
fn what_cannot_be_evaluated() {
    assert!(fails("size / 0 = 1").contains("zero"));
    assert!(fails("color * 2 = 1").contains("calculated"));
    assert!(fails("-color = 1").contains("sign"));
    assert!(fails("color").contains("no condition"));
    assert!(fails("color LIKE size").contains("no pattern"));
    assert!(fails("color LIKE 'a' ESCAPE 'xy'").contains("one character"));
    assert!(fails("color LIKE 'a!' ESCAPE '!'").contains("ends in"));
    assert!(fails("size * 9223372036854775807 = 1").contains("range"));
}

#[test]
fn parameters_stand_for_values() {
    let parameters = [("@c".to_owned(), Value::string("blue")), ("n".to_owned(), Value::Int(10))];
    let condition = parse_condition("color = @c AND size = @n", &parameters).unwrap();
    assert!(condition.is_true(&message()).unwrap());
}

fn acted(text: &str) -> Result<Message, String> {
    let mut message = message();
    run(&parse_action(text, &[])?, &mut message).map(|()| message)
}

#[test]
fn actions_set_and_remove() {
    let message =
        acted("SET color = 'red'; SET sys.Label = color + '!'; set [new one] = size * 2, REMOVE paid SET raw = NULL")
            .unwrap();
    assert_eq!(message.application_property("color"), Some(&Value::string("red")));
    assert_eq!(message.properties.subject.as_deref(), Some("red!"), "statements see what came before");
    assert_eq!(message.application_property("new one"), Some(&Value::Long(20)));
    assert_eq!(message.application_property("paid"), None);
    assert_eq!(message.application_property("raw"), None);
    let message = acted("REMOVE sys.Label; SET sys.SessionId = 's'; SET sys.MessageId = 'm'").unwrap();
    assert_eq!(message.properties.subject, None);
    assert_eq!(message.properties.group_id.as_deref(), Some("s"));
    assert_eq!(message.properties.message_id, Some(Value::string("m")));
}

#[test]
fn actions_that_are_refused() {
    for (text, why) in [
        ("", "empty"),
        ("color = 'red'", "SET or REMOVE"),
        ("SET color 'red'", "expected ="),
        ("REMOVE", "the end"),
        ("SET sys.Label = 1", "a number"),
        ("SET sys.TimeToLive = 'x'", "cannot be changed"),
        ("SET color = raw", "cannot be copied"),
    ] {
        let found = acted(text).expect_err(text);
        assert!(found.contains(why), "{text}: {found}");
    }
}

#[test]
fn no_text_makes_it_panic() {
    use proptest::prelude::*;
    proptest!(ProptestConfig::with_cases(2000), |(text in "([a-z0-9 ='%()\\[\\]\".@<>!,;+*/-]|NOT |IN |LIKE |IS |NULL |sys\\.|é|'){0,40}")| {
        if let Ok(condition) = parse_condition(&text, &[]) {
            let _ = condition.is_true(&message());
        }
        let _ = parse_action(&text, &[]);
    });
}
