//! The one retry that is left to the SDK: a request refused since this machine's clock is off. By then the SDK has read the service's time
//! from the answer's `Date`, and signs by it; the refused request has surely not been carried out.

use aws_sdk_sqs::config::{
    interceptors::InterceptorContext,
    retry::{ClassifyRetry, RetryAction},
};

/// Forbids every other retry: core makes those, and knows what may be sent twice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SkewAlone;

impl ClassifyRetry for SkewAlone {
    fn classify_retry(&self, ctx: &InterceptorContext) -> RetryAction {
        let refused = ctx.response().filter(|answer| answer.status().is_client_error());
        match refused.and_then(|answer| std::str::from_utf8(answer.body().bytes()?).ok()) {
            Some(body) if tells_skew(body) => RetryAction::server_error(),
            _ => RetryAction::RetryForbidden,
        }
    }

    fn name(&self) -> &'static str {
        "polybus-skew-alone"
    }
}

/// In JSON and XML alike. <https://docs.aws.amazon.com/IAM/latest/UserGuide/signature-v4-troubleshooting.html>
fn tells_skew(body: &str) -> bool {
    let words = ["Signature expired", "Signature not yet current", "RequestTimeTooSkewed", "RequestExpired"];
    words.iter().any(|word| body.contains(word))
}
