//! What an emulator says of itself, for reports. AWS tells no version.

use std::sync::{Arc, OnceLock};

use aws_sdk_sqs::{
    config::{
        ConfigBag, Intercept, RuntimeComponents, http::HttpRequest,
        interceptors::AfterDeserializationInterceptorContextRef,
    },
    error::BoxError,
};
use serde_json::Value;

use crate::transport::clients::Clients;

/// LocalStack's own. <https://docs.localstack.cloud/aws/capabilities/networking/internal-endpoints/>
const HEALTH: &str = "/_localstack/health";
/// An endpoint below this is AWS' own.
const AWS: &str = "amazonaws.com";

/// The endpoint, where it is not AWS' own.
pub(crate) fn endpoint(clients: &Clients) -> Option<&str> {
    clients.config.endpoint.as_deref().filter(|endpoint| !endpoint.contains(AWS))
}

/// Product and version, where the endpoint is one of LocalStack. It goes the way of every other call: same TLS, same proxy, same time-outs.
pub(crate) async fn version(clients: &Clients) -> Option<String> {
    let endpoint = endpoint(clients)?;
    let (url, answer) = (format!("{endpoint}{HEALTH}"), Answer::default());
    let call = clients.sqs.list_queues().customize();
    let call = call.mutate_request(move |request| ask(request, &url)).interceptor(answer.clone());
    Box::pin(call.send()).await.ok()?;
    let told: Value = serde_json::from_slice(answer.0.get()?).ok()?;
    Some(format!("LocalStack {}", told.get("version")?.as_str()?))
}

/// The SDK signs and sends this instead.
fn ask(request: &mut HttpRequest, url: &str) {
    if let Ok(get) = HttpRequest::get(url) {
        *request = get;
    }
}

/// Keeps the body of an answer.
#[derive(Clone, Debug, Default)]
struct Answer(Arc<OnceLock<Vec<u8>>>);

impl Intercept for Answer {
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
