//! The one retry that is left to the SDK: of a request that was refused because this machine's clock is off.
//!
//! By then the SDK has read the service's time from the answer's `Date` and signs by it. The refused request was surely
//! not carried out.

use aws_sdk_sqs::config::{
    interceptors::InterceptorContext,
    retry::{ClassifyRetry, RetryAction},
};

/// Allows that retry and forbids every other. Core makes the others, and knows what may be sent twice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClockSkewRetry;

impl ClassifyRetry for ClockSkewRetry {
    fn classify_retry(&self, ctx: &InterceptorContext) -> RetryAction {
        let refused = ctx.response().filter(|answer| answer.status().is_client_error());
        match refused.and_then(|answer| std::str::from_utf8(answer.body().bytes()?).ok()) {
            Some(body) if is_clock_error(body) => RetryAction::server_error(),
            _ => RetryAction::RetryForbidden,
        }
    }

    fn name(&self) -> &'static str {
        "polybus-skew-alone"
    }
}

/// Whether an answer, in JSON or XML, blames the clock.
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/signature-v4-troubleshooting.html>
fn is_clock_error(body: &str) -> bool {
    let words = ["Signature expired", "Signature not yet current", "RequestTimeTooSkewed", "RequestExpired"];
    words.iter().any(|word| body.contains(word))
}
