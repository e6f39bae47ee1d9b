//! Rules that imitate what SQS and SNS do in the cloud and LocalStack does not, in AWS' own words.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use super::http::HttpMessage;

/// How the proxy handles a request.
pub(crate) enum RequestAction {
    /// LocalStack answers it.
    Pass,
    /// LocalStack answers it, and the answer is changed by this.
    Edit(Box<dyn FnOnce(&mut Value) + Send>),
    /// This is the answer, and LocalStack never sees the request.
    Answer(HttpMessage),
    /// This is the answer, and LocalStack sees the request later.
    Later(Duration, HttpMessage),
}

/// Decides about a request, or leaves it to the next rule.
pub(crate) type CloudRule = Box<dyn FnMut(&HttpMessage) -> Option<RequestAction> + Send>;

/// An error, in the protocol of the service that the request is for.
pub(crate) fn refusal(request: &HttpMessage, status: u16, code: &str, message: &str) -> RequestAction {
    RequestAction::Answer(match request.is_json() {
        true => {
            let body = json!({ "__type": format!("com.amazonaws.sqs#{code}"), "message": message }).to_string();
            HttpMessage::answer(status, "application/x-amz-json-1.0", &body)
        }
        false => {
            let error = format!("<Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>");
            let body =
                format!("<ErrorResponse xmlns=\"http://sns.amazonaws.com/doc/2010-03-31/\">{error}</ErrorResponse>");
            HttpMessage::answer(status, "text/xml", &body)
        }
    })
}

/// Refuses the first requests of an operation with this code. `""` means any operation.
pub(crate) fn refuses(
    operation: &'static str,
    times: usize,
    status: u16,
    code: &'static str,
    text: &'static str,
) -> CloudRule {
    let mut left = times;
    Box::new(move |request| {
        if left == 0 || !(operation.is_empty() || request.operation() == operation) {
            return None;
        }
        left -= 1;
        Some(refusal(request, status, code, text))
    })
}

/// Throttles the first requests.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ReceiveMessage.html#API_ReceiveMessage_Errors>
pub(crate) fn throttles(operation: &'static str, times: usize) -> CloudRule {
    refuses(operation, times, 403, "RequestThrottled", "Rate exceeded")
}

/// Throttles SNS' lists beyond so many a second for the account.
/// <https://docs.aws.amazon.com/sns/latest/api/API_ListSubscriptionsByTopic.html>
pub(crate) fn lists_a_second(most: usize) -> CloudRule {
    let mut recent: Vec<Instant> = Vec::new();
    Box::new(move |request| {
        if !matches!(&*request.operation(), "ListSubscriptionsByTopic" | "ListTopics" | "ListSubscriptions") {
            return None;
        }
        recent.retain(|at| at.elapsed() < Duration::from_secs(1));
        if recent.len() >= most {
            return Some(refusal(request, 400, "Throttling", "Rate exceeded"));
        }
        recent.push(Instant::now());
        None
    })
}

/// The session token of temporary credentials has expired.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html>
pub(crate) fn expired_token(times: usize) -> CloudRule {
    refuses("", times, 403, "ExpiredToken", "The security token included in the request is expired")
}

/// The access key is one that AWS does not know, or not yet.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html>
pub(crate) fn unknown_key(times: usize) -> CloudRule {
    refuses("", times, 403, "InvalidClientTokenId", "The security token included in the request is invalid.")
}

/// The KMS key of an encrypted queue is missing. The query protocol's code, which the SDK prefers, has a dot in it.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html#API_SendMessage_Errors>
pub(crate) fn key_missing(operation: &'static str, times: usize) -> CloudRule {
    let mut left = times;
    Box::new(move |request| {
        if left == 0 || request.operation() != operation {
            return None;
        }
        left -= 1;
        let body = json!({ "__type": "com.amazonaws.sqs#KmsNotFound", "message": "Invalid keyId" }).to_string();
        let mut answer = HttpMessage::answer(400, "application/x-amz-json-1.0", &body);
        answer.set("x-amzn-query-error", "KMS.NotFoundException;Sender");
        Some(RequestAction::Answer(answer))
    })
}

/// Every other request for a new queue reaches a host that does not know it yet.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_CreateQueue.html>
pub(crate) fn not_seen_everywhere(span: Duration) -> CloudRule {
    let (mut made, mut turn): (HashMap<String, Instant>, usize) = (HashMap::new(), 0);
    Box::new(move |request| {
        if !request.is_json() {
            return None;
        }
        let input = request.json();
        let by_url = || input["QueueUrl"].as_str()?.rsplit('/').next();
        let queue = input["QueueName"].as_str().or_else(by_url)?.to_owned();
        if request.operation() == "CreateQueue" {
            made.entry(queue).or_insert_with(Instant::now);
            return None;
        }
        made.get(&queue).filter(|at| at.elapsed() < span)?;
        turn += 1;
        let refused = || refusal(request, 400, "QueueDoesNotExist", "The specified queue does not exist.");
        (turn % 2 == 1).then(refused)
    })
}

/// Adds so many to the number of messages in flight of each queue.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html>
pub(crate) fn in_flight(more: u64) -> CloudRule {
    Box::new(move |request| {
        (request.operation() == "GetQueueAttributes").then(|| {
            RequestAction::Edit(Box::new(move |answer: &mut Value| {
                let flying = &mut answer["Attributes"]["ApproximateNumberOfMessagesNotVisible"];
                let there: u64 = flying.as_str().and_then(|n| n.parse().ok()).unwrap_or_default();
                *flying = (there + more).to_string().into();
            }))
        })
    })
}

/// Attributes that are set take so long to be seen: up to a minute. Until then SNS discards what the queue's policy
/// would let in.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SetQueueAttributes.html>
/// <https://docs.aws.amazon.com/sns/latest/dg/sns-dead-letter-queues.html#why-do-message-deliveries-fail>
pub(crate) fn late_attributes(by: Duration) -> CloudRule {
    let mut policy_set: Option<Instant> = None;
    Box::new(move |request| match &*request.operation() {
        "SetQueueAttributes" => {
            if request.json()["Attributes"].get("Policy").is_some() {
                policy_set = Some(Instant::now());
            }
            Some(RequestAction::Later(by, HttpMessage::answer(200, "application/x-amz-json-1.0", "{}")))
        }
        "PublishBatch" => {
            policy_set.filter(|at| at.elapsed() < by)?;
            let ids = request.form().into_iter().filter(|(name, _)| name.ends_with(".Id"));
            let each: String =
                ids.map(|(_, id)| format!("<member><Id>{id}</Id><MessageId>discarded</MessageId></member>")).collect();
            let body = format!(
                "<PublishBatchResponse xmlns=\"http://sns.amazonaws.com/doc/2010-03-31/\"><PublishBatchResult>\
                 <Successful>{each}</Successful><Failed/></PublishBatchResult></PublishBatchResponse>"
            );
            Some(RequestAction::Answer(HttpMessage::answer(200, "text/xml", &body)))
        }
        _ => None,
    })
}

/// Changes of visibility come too late: SQS makes nothing of an old receipt.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibility.html#API_ChangeMessageVisibility_Errors>
pub(crate) fn visibility_ended() -> CloudRule {
    Box::new(move |request| {
        if request.operation() != "ChangeMessageVisibilityBatch" {
            return None;
        }
        let text = "Value AQEB for parameter ReceiptHandle is invalid. Reason: Message does not exist or is not available \
                    for visibility timeout change.";
        let input = request.json();
        let entries = input["Entries"].as_array().unwrap().iter();
        let failed =
            |e: &Value| json!({ "Id": e["Id"], "Code": "InvalidParameterValue", "Message": text, "SenderFault": true });
        let body = json!({ "Successful": [], "Failed": entries.map(failed).collect::<Vec<_>>() }).to_string();
        Some(RequestAction::Answer(HttpMessage::answer(200, "application/x-amz-json-1.0", &body)))
    })
}

/// How far a signature's time may be from the service's clock.
const SKEW: i64 = 300;

/// Refuses a request whose time is not the cloud's, as it is `ahead` of `now`.
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/signature-v4-troubleshooting.html>
pub(crate) fn signature(request: &HttpMessage, now: SystemTime, ahead: i64) -> Option<RequestAction> {
    let signed = seconds(request.header("x-amz-date")?)?;
    let now = now.duration_since(UNIX_EPOCH).unwrap().as_secs() as i64 + ahead;
    if (signed - now).abs() <= SKEW {
        return None;
    }
    let word = if signed < now { "Signature expired" } else { "Signature not yet current" };
    let text = format!("{word}: {signed} is now {} {now}", if signed < now { "earlier than" } else { "later than" });
    let code = if request.is_json() { "InvalidSignatureException" } else { "SignatureDoesNotMatch" };
    Some(refusal(request, 403, code, &text))
}

/// `20261129T110000Z` in seconds since 1970.
fn seconds(text: &str) -> Option<i64> {
    let part = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (part(0, 4)?, part(4, 6)?, part(6, 8)?);
    let month = time::Month::try_from(month as u8).ok()?;
    let date = time::Date::from_calendar_date(year as i32, month, day as u8).ok()?;
    let time = time::Time::from_hms(part(9, 11)? as u8, part(11, 13)? as u8, part(13, 15)? as u8).ok()?;
    Some(time::PrimitiveDateTime::new(date, time).assume_utc().unix_timestamp())
}

/// The cloud's time as a `Date` header has it.
pub(crate) fn http_date(ahead: i64) -> String {
    let at = time::OffsetDateTime::now_utc() + time::Duration::seconds(ahead);
    let (weekday, month) = (at.weekday().to_string(), at.month().to_string());
    let (day, year, clock) = (at.day(), at.year(), at.time());
    let clock = format!("{:02}:{:02}:{:02}", clock.hour(), clock.minute(), clock.second());
    format!("{}, {day:02} {} {year} {clock} GMT", &weekday[..3], &month[..3])
}
