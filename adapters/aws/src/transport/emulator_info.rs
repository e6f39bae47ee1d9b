//! Product and version of an emulator, for reports. AWS itself tells no version.

use std::sync::{Arc, OnceLock};

use aws_sdk_sqs::{
    config::{
        ConfigBag, Intercept, RuntimeComponents, http::HttpRequest,
        interceptors::AfterDeserializationInterceptorContextRef,
    },
    error::BoxError,
};
use serde_json::Value;

use crate::transport::clients::AwsClients;

/// LocalStack's page about itself.
/// <https://docs.localstack.cloud/aws/capabilities/networking/internal-endpoints/>
const HEALTH: &str = "/_localstack/health";
/// AWS' own endpoints are below this domain.
const AWS: &str = "amazonaws.com";

/// The configured endpoint, if it is not one of AWS' own.
pub(crate) fn endpoint(clients: &AwsClients) -> Option<&str> {
    clients.config.endpoint.as_deref().filter(|endpoint| !endpoint.contains(AWS))
}

/// Product and version, if the endpoint is LocalStack's. It is asked as every other call is made: same TLS, same proxy,
/// same time-outs.
pub(crate) async fn version(clients: &AwsClients) -> Option<String> {
    let endpoint = endpoint(clients)?;
    let (url, answer) = (format!("{endpoint}{HEALTH}"), AnswerBody::default());
    let call = clients.sqs.list_queues().customize();
    let call = call.mutate_request(move |request| replace(request, &url)).interceptor(answer.clone());
    Box::pin(call.send()).await.ok()?;
    let health: Value = serde_json::from_slice(answer.0.get()?).ok()?;
    Some(format!("LocalStack {}", health.get("version")?.as_str()?))
}

/// Replaces the call by a GET of `url`, which the SDK signs and sends instead.
fn replace(request: &mut HttpRequest, url: &str) {
    if let Ok(get) = HttpRequest::get(url) {
        *request = get;
    }
}

/// An interceptor that keeps the body of an answer.
#[derive(Clone, Debug, Default)]
struct AnswerBody(Arc<OnceLock<Vec<u8>>>);

impl Intercept for AnswerBody {
    fn name(&self) -> &'static str {
        "polybus-answer"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(body) = context.response().body().bytes() {
            let _ = self.0.set(body.to_vec());
        }
        Ok(())
    }
}
