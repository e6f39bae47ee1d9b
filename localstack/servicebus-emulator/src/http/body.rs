//! Reads the bodies of requests, with a limit on size and time.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::StatusCode;
use hyper::body::Incoming;
use tokio::time::timeout;

use super::response::{Answer, failed};

/// The time limit for the whole body.
const TIME: Duration = Duration::from_secs(30);

/// Reads the whole body. The error is the answer to send instead.
pub(super) async fn read(body: Incoming, limit: usize) -> Result<Bytes, Answer> {
    match timeout(TIME, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(failed(StatusCode::PAYLOAD_TOO_LARGE, &format!("The request body is larger than {limit} bytes.")))
        }
        Ok(Err(_)) => Err(failed(StatusCode::BAD_REQUEST, "The request body broke off.")),
        Err(_) => Err(failed(StatusCode::REQUEST_TIMEOUT, "The request body took too long.")),
    }
}
